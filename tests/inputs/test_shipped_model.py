"""The trained gpt2-nano of the package: whole files, found without a network, that write words."""

import hashlib
import re

import pytest

from gpt_parallel.inputs.checkpoint import read_architecture
from gpt_parallel.inputs.models import ARCHITECTURES, resolve_model
from gpt_parallel.inputs.tokenizer import Tokenizer
from tests.support.paths import ROOT

DIRECTORY = ROOT / "gpt_parallel" / "inputs" / "data" / "gpt2-nano"
PROMPTS = ("And the king said", "Once the water boils,", "The ferry to the island leaves at dawn, when")


@pytest.mark.parametrize("weights", ["checkpoint"])
def test_it_is_found_without_a_network(weights):
    model = resolve_model("gpt2-nano", weights, offline=True)

    assert (model.name, model.weights, model.directory) == ("gpt2-nano", "checkpoint", str(DIRECTORY))
    assert model.architecture == read_architecture(DIRECTORY) == ARCHITECTURES["gpt2-nano"]
    assert Tokenizer(model).description == "model's tokenizer"


def test_auto_stays_random():
    assert resolve_model("gpt2-nano", "auto").weights == "random"


def test_random_weights_stay():
    model = resolve_model("gpt2-nano", "random", 3)

    assert (model.weights_origin, model.directory) == ("random (seed 3)", None)


def test_files_are_those_that_the_script_wrote():
    lines = (DIRECTORY / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)

    assert set(sums) == {"config.json", "model.safetensors", "tokenizer.json"}
    for name, expected in sums.items():
        assert hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest() == expected
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) < 4 << 20


def test_it_writes_words():
    """Words that the tokenizer has whole, as the text's frequent ones."""
    import torch
    from transformers import GPT2LMHeadModel

    tokenizer = Tokenizer(resolve_model("gpt2-nano", "checkpoint", offline=True))
    network = GPT2LMHeadModel.from_pretrained(DIRECTORY, dtype=torch.float32)
    vocabulary = {(tokenizer.decode((token,)) or "").strip() for token in range(4096)}
    words = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        found = network.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(tuple(found[0, ids.shape[1] :].tolist()))
        words += re.findall(r"[^\W\d_]+", text)

    assert len(words) > 90
    assert sum(word in vocabulary for word in words) >= 0.9 * len(words)
    assert len(set(words)) > 25
