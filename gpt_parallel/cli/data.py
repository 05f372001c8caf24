"""`gpt-parallel data`: makes, checks and converts prompts files."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.progress import Progress

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.escaping import plain
from gpt_parallel.cli.common import errors, exit_codes, option
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.prompt_authoring import (
    PromptSet,
    check_outputs,
    grid,
    grid_path,
    inspect_prompts,
    make_prompts,
    write_prompts,
)
from gpt_parallel.inputs.prompt_files.read import PromptFile, read_prompt_file
from gpt_parallel.inputs.prompts import DEFAULT_MAX_LENGTH, shipped_prompts
from gpt_parallel.inputs.tokenizer import Tokenizer
from gpt_parallel.schema.model import ModelSpec

GENERATE_HELP = """Write a JSON Lines file of text prompts that are all PROMPT_TOKENS long.

Texts are passages from the shipped prompts, chosen by --seed; the same command writes the same file. Lengths are
counted by the model's own tokenizer if its files are on this disk, otherwise in bytes; the output says which.
--benchmark writes several files, named after OUTPUT, one for each combination of a length (PROMPT_TOKENS, and halves of
it) and a size (a fifth of NUM_SAMPLES, and all).

\b
Examples:
  gpt-parallel data generate --num-samples 50 --prompt-tokens 256 --output prompts.jsonl
  gpt-parallel data generate --num-samples 60 --prompt-tokens 256 --benchmark --num-configs 6 --output bench.jsonl
"""
VALIDATE_HELP = """Check a prompts file as a run would read it: what was understood, or every line that cannot be run.

Without a file, the shipped prompts are checked. Formats are recognised by their shape: JSON Lines, a JSON array,
ShareGPT, chat messages, Alpaca, vLLM's custom format, CSV, TSV, Parquet, and plain text with a prompt on each line.

Exit codes: 0 every prompt can be run, 2 some cannot, or the file cannot be read.

\b
Examples:
  gpt-parallel data validate
  gpt-parallel data validate sharegpt.json --model gpt2-xl
"""
CONVERT_HELP = """Write the prompts of a file in any format as this package's JSON Lines: prompt and max_length.

\b
Examples:
  gpt-parallel data convert sharegpt.json prompts.jsonl
  gpt-parallel data convert questions.csv prompts.jsonl --force
"""
_MODEL = option("--model", "Model whose tokenizer and limits apply; it is not downloaded.")

app = typer.Typer(help="Make, check and convert prompts files.", no_args_is_help=True)


@app.command("generate", help=GENERATE_HELP)
def generate(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("prompts.jsonl"),
    num_samples: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 50,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens to generate for each prompt.")] = DEFAULT_MAX_LENGTH,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the choice of passages.")] = 0,
    model: Annotated[str, _MODEL] = "gpt2",
    benchmark: Annotated[bool, option("--benchmark", "Write a file for each length and size.")] = False,
    num_configs: Annotated[
        int | None, typer.Option(min=1, help="With --benchmark: number of files; default 6.")
    ] = None,
    force: Annotated[bool, option("--force", "Replace existing files.")] = False,
) -> None:
    with exit_codes():
        if num_configs is not None and not benchmark:
            raise SpecError("--num-configs needs --benchmark")
        spec = resolve_model(model, "auto", offline=True)
        prompt_set = PromptSet(num_samples, prompt_tokens, max_length)
        _check_length(prompt_set, spec)
        files = {output: prompt_set}
        if benchmark:
            files = {grid_path(output, member): member for member in grid(prompt_set, num_configs or 6)}
        check_outputs(files, force=force)
        tokenizer = Tokenizer(spec)
        with _progress(sum(member.num_samples for member in files.values())) as advance:
            for path, member in files.items():
                write_prompts(path, make_prompts(member, tokenizer.encode, seed), advance)
                print(plain(f"{path}: {member.num_samples} prompts of {member.prompt_tokens} tokens"))
        print(f"lengths are counted {_counted_by(tokenizer, spec)}")


@app.command("validate", help=VALIDATE_HELP)
def validate(
    file: Annotated[Path | None, typer.Argument(help="File of prompts; default: the shipped ones.")] = None,
    model: Annotated[str, _MODEL] = "gpt2",
) -> None:
    with exit_codes():
        spec = resolve_model(model, "auto", offline=True)
        tokenizer = Tokenizer(spec)
        found = read_prompt_file(file or shipped_prompts())
        _print_understood(found, tokenizer)
        shape = spec.architecture
        if file is None:  # presets cut the shipped prompts to the length that they measure
            shape = shape.model_copy(update={"max_positions": sys.maxsize})
        contents = inspect_prompts(found, tokenizer.encode, shape, spec.name, tokenizer.encode_chat)
        count, lengths = len(contents.prompt_lengths), contents.prompt_lengths
        news = sorted({min(contents.max_lengths), max(contents.max_lengths)})
        print(plain(f"{file or 'shipped prompts'}: {count} prompts, all can be run with {spec.name}"))
        print(f"{contents.num_texts} texts, {count - contents.num_texts} lists of token ids; ", end="")
        print(f"max_length {'–'.join(map(str, news))}; {contents.num_repeated} repeat an earlier one")
        spread = f"shortest {min(lengths)}, median {median(lengths):g}, longest {max(lengths)} tokens"
        print(f"prompt lengths, counted {_counted_by(tokenizer, spec)}: {spread}")


@app.command("convert", help=CONVERT_HELP)
def convert(
    file: Annotated[Path, typer.Argument(help="File of prompts in any format.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="JSON Lines file to write.", show_default=False)],
    force: Annotated[bool, option("--force", "Replace an existing file.")] = False,
) -> None:
    with exit_codes():
        check_outputs([output], force=force)
        found = read_prompt_file(file)
        _print_understood(found, None)
        write_prompts(output, found.prompts)
        print(plain(f"{output}: {len(found.rows)} prompts"))


def _print_understood(found: PromptFile, tokenizer: Tokenizer | None) -> None:
    is_templated = tokenizer is not None and tokenizer.encode_chat is not None
    print(plain(f"read as {found.container}: {found.name(is_templated)}, {found.encoding}, {len(found.rows)} prompts"))
    if found.note_on_ignored:
        errors.print(f"note: {plain(found.note_on_ignored)}")


def _check_length(prompts: PromptSet, spec: ModelSpec) -> None:
    total, limit = prompts.prompt_tokens + prompts.max_length, spec.architecture.max_positions
    if total > limit:
        raise SpecError(
            f"{prompts.prompt_tokens} prompt + {prompts.max_length} new tokens = {total}, but {spec.name} has {limit} "
            "positions; use a smaller --prompt-tokens or --max-length"
        )


def _counted_by(tokenizer: Tokenizer, spec: ModelSpec) -> str:
    if tokenizer.is_own:
        return plain(f"by {spec.name}'s own tokenizer")
    return plain(f"in bytes, because {spec.name}'s tokenizer is not on this disk")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and nothing in a log, where the line for each file is enough."""
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("writing", total=total)
        yield lambda: progress.advance(task)
