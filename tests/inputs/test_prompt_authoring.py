"""Prompts files: made to a length, never half-written, and checked line by line."""

import json

import pytest
from tokenizers import ByteLevelBPETokenizer
from typer.testing import CliRunner

from gpt_parallel.base.errors import SpecError
from gpt_parallel.cli import app
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.prompt_authoring import (
    PromptSet,
    grid,
    inspect_prompts,
    make_prompts,
    write_prompts,
)
from gpt_parallel.inputs.prompt_files.read import read_prompt_file, read_prompts
from gpt_parallel.inputs.prompts import Prompt, shipped_prompts


def as_bytes(text):
    return list(text.encode())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a GPT-2 with a small tokenizer trained on the shipped prompts."""
    directory = tmp_path_factory.mktemp("trained")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(shipped_prompts())], vocab_size=600, min_frequency=2)
    tokenizer.save_model(str(directory))
    return directory, lambda text: list(tokenizer.encode(text).ids)


def run(*arguments):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize("length", [1, 2, 7, 64, 256, 1000])
def test_prompts_are_exactly_as_long_as_asked(length, trained):
    for encode in (as_bytes, trained[1]):
        prompts = list(make_prompts(PromptSet(20, length, 9), encode, seed=3))

        assert len(prompts) == 20
        assert {len(encode(prompt.prompt)) for prompt in prompts} == {length}
        assert {prompt.max_length for prompt in prompts} == {9}
    assert len({prompt.prompt for prompt in prompts}) > 3


def test_texts_are_words_with_hardly_any_filling():
    words = {word for prompt in read_prompts(shipped_prompts()) if prompt.prompt for word in prompt.prompt.split()}

    for prompt in make_prompts(PromptSet(10, 256, 9), as_bytes, seed=0):
        *inner, _ = prompt.prompt.split(" ")
        assert set(inner) <= words
        assert not prompt.prompt.endswith("....")


def test_the_seed_decides():
    def texts(seed):
        return [prompt.prompt for prompt in make_prompts(PromptSet(5, 100, 9), as_bytes, seed)]

    assert texts(1) == texts(1) != texts(2)


def test_where_no_text_has_the_length_there_are_ids():
    """A tokenizer that makes two tokens of every character cannot make seven."""
    prompts = list(make_prompts(PromptSet(3, 7, 9), lambda text: as_bytes(text + text), seed=0))

    assert all(prompt.prompt is None and len(prompt.prompt_ids) == 7 for prompt in prompts)


def test_a_grid_has_lengths_and_sizes():
    assert grid(PromptSet(50, 256, 64), 6) == [
        PromptSet(count, length, 64) for length in (64, 128, 256) for count in (10, 50)
    ]
    assert grid(PromptSet(50, 256, 64), 1) == [PromptSet(50, 256, 64)]
    assert grid(PromptSet(1, 4, 64), 3) == [PromptSet(1, length, 64) for length in (1, 2, 4)]
    with pytest.raises(SpecError, match="6 configurations need 3 lengths, each half of the next, and 3 tokens"):
        grid(PromptSet(50, 3, 64), 6)


def test_generate_writes_what_runs_read(tmp_path):
    output = tmp_path / "p.jsonl"

    done = run(
        "generate", "--num-samples", 5, "--prompt-tokens", 40, "--max-length", 7, "--output", output, "--seed", 2
    )

    assert done.exit_code == 0
    assert "5 prompts of 40 tokens" in done.output
    assert "counted in bytes, because gpt2's tokenizer is not on this disk" in done.output
    prompts = read_prompts(output)
    assert [(len(prompt.prompt.encode()), prompt.max_length) for prompt in prompts] == [(40, 7)] * 5
    assert all(set(json.loads(line)) == {"prompt", "max_length"} for line in output.read_text().splitlines())
    assert "5 prompts, all can be run with gpt2" in run("validate", output).output


def test_lengths_are_those_of_the_models_own_tokenizer(tmp_path, trained, tiny_checkpoint):
    model = tiny_checkpoint(vocab_size=600)
    for name in ("vocab.json", "merges.txt"):
        (model / name).write_bytes((trained[0] / name).read_bytes())
    output = tmp_path / "p.jsonl"

    done = run(
        "generate", "--num-samples", 4, "--prompt-tokens", 30, "--max-length", 9, "--model", model, "--output", output
    )

    assert done.exit_code == 0, done.output
    assert "own tokenizer" in done.output
    assert {len(trained[1](prompt.prompt)) for prompt in read_prompts(output)} == {30}
    assert ": shortest 30, median 30, longest 30 tokens" in run("validate", output, "--model", model).output


def test_nothing_is_replaced_unless_forced(tmp_path):
    output = tmp_path / "p.jsonl"
    output.write_text("mine")

    refused = run("generate", "--num-samples", 2, "--output", output)

    assert refused.exit_code == 2
    assert "exists already; --force replaces it" in refused.output
    assert output.read_text() == "mine"
    assert run("generate", "--num-samples", 2, "--output", output, "--force").exit_code == 0
    assert len(read_prompts(output)) == 2


def test_a_benchmark_is_several_files_or_none(tmp_path):
    arguments = ("generate", "--benchmark", "--num-samples", 10, "--prompt-tokens", 32, "--num-configs", 4)
    (tmp_path / "b_10x32.jsonl").write_text("in the way")

    refused = run(*arguments, "--output", tmp_path / "b.jsonl")

    assert refused.exit_code == 2
    assert len(list(tmp_path.iterdir())) == 1
    done = run(*arguments, "--output", tmp_path / "b.jsonl", "--force")
    assert done.exit_code == 0
    sizes = {path.name: len(read_prompts(path)) for path in tmp_path.iterdir()}
    assert sizes == {"b_2x16.jsonl": 2, "b_10x16.jsonl": 10, "b_2x32.jsonl": 2, "b_10x32.jsonl": 10}


def test_a_file_that_fails_half_way_is_not_there(tmp_path):
    def prompts():
        yield Prompt(prompt="one")
        raise KeyboardInterrupt

    (tmp_path / "old.jsonl").write_text("old")
    for name in ("old.jsonl", "new.jsonl"):
        with pytest.raises(KeyboardInterrupt):
            write_prompts(tmp_path / name, prompts())

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.jsonl", "old")]


def test_progress_is_told_for_every_prompt(tmp_path):
    told = []

    write_prompts(tmp_path / "p.jsonl", [Prompt(prompt="a"), Prompt(prompt="b")], lambda: told.append(1))

    assert len(told) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-configs", "3"), "--num-configs needs --benchmark"),
        (("--prompt-tokens", "1000"), "1000 prompt + 64 new tokens = 1064, but gpt2 has 1024 positions"),
        (("--model", "nosuch"), "not a known model"),
        (("--num-samples", "0"), "Invalid value for"),
        (("--output", "."), "is a directory; give a file's name"),
        (("--output", "/dev/null/p.jsonl"), "cannot be written"),
    ],
)
def test_wrong_requests_write_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    done = run("generate", "--output", "p.jsonl", "--num-samples", "2", *arguments)

    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_validate_names_every_line_that_cannot_be_run(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [
        '{"prompt": "fine"}',
        '{"prompt": 5}',
        "",
        '{"promt": "x"}',
        '{"prompt": "x", "max_length": 0}',
        "nonsense",
    ]
    path.write_text("\n".join(lines))

    done = run("validate", path)

    assert done.exit_code == 2
    for number, what in ((2, "prompt = 5"), (4, "promt"), (5, "max_length = 0"), (6, "not valid JSON")):
        assert any(f"p.jsonl:{number}: " in line and what in line for line in done.output.splitlines())
    assert "p.jsonl:1" not in done.output
    assert "p.jsonl:3" not in done.output


def test_validate_knows_the_models_limits(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt_ids": [1]}\n\n{"prompt_ids": [4096]}\n' + json.dumps({"prompt": "x" * 250}))

    with pytest.raises(SpecError) as failure:
        inspect_prompts(read_prompt_file(path), as_bytes, ARCHITECTURES["gpt2-nano"], "gpt2-nano")

    first, second = failure.value.problems
    assert f"{path}:3: token id 4096 is outside gpt2-nano's vocabulary; allowed: 0 to 4095" in first
    assert f"{path}:4: 250 prompt + 64 new tokens = 314, but gpt2-nano has 256 positions" in second


def test_validate_refuses_a_prompt_that_tokenises_to_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt_ids": [1]}\n{"prompt": "x"}\n')

    with pytest.raises(SpecError, match=r"p\.jsonl:2: is empty after tokenisation"):
        inspect_prompts(read_prompt_file(path), lambda text: [], ARCHITECTURES["gpt2"], "gpt2")


def test_validate_names_the_first_of_many(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt_ids": [99999]}\n' * 50)

    with pytest.raises(SpecError) as failure:
        inspect_prompts(read_prompt_file(path), as_bytes, ARCHITECTURES["gpt2"], "gpt2")

    assert (len(failure.value.problems), failure.value.problems[-1]) == (21, "… and 30 more")


def test_validate_counts_what_is_there(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "abc"}\n{"prompt": "abc", "max_length": 3}\n{"prompt_ids": [1, 2]}\n')

    contents = inspect_prompts(read_prompt_file(path), as_bytes, ARCHITECTURES["gpt2"], "gpt2")

    assert contents == (2, [3, 3, 2], [64, 3, 64], 1)
    output = run("validate", path).output
    assert "3 prompts, all can be run with gpt2" in output
    assert "2 texts, 1 lists of token ids; max_length 3–64; 1 repeat an earlier one" in output


def test_a_file_that_is_not_there(tmp_path):
    done = run("validate", tmp_path / "absent.jsonl")

    assert done.exit_code == 2
    assert "cannot be read (No such file" in done.output
