"""The launcher's command lines of the system that this one replaces, with nothing but the script's name changed."""

import itertools
import re
import shlex

import pytest
import typer.testing

import gpt_parallel.cli
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli.run import _choose_case
from gpt_parallel.inputs.option_aliases import with_bare_values
from gpt_parallel.inputs.settings import make_settings, options
from gpt_parallel.inputs.yaml_file import read_config
from tests.cli.test_commands import run_cli
from tests.support.paths import ROOT

LINES = (ROOT / "tests/support/launcher_commands.txt").read_text(encoding="utf-8").splitlines()
LOOPS = {
    "$strategy": ("pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid", "full_model_parallel"),
    "$gpus": (1, 2, 4),
    "$gpu": (1, 2, 4),
}


def lines_of_loops(line):
    """The command lines that a line of a shell loop runs."""
    names = [name for name in LOOPS if name in line.split()]
    for values in itertools.product(*(LOOPS[name] for name in names)):
        text = line
        for name, value in zip(names, values, strict=True):
            text = text.replace(name, str(value))
        yield text


COMMANDS = [command for line in LINES for command in lines_of_loops(line)]


def test_all_lines_of_the_document_are_there():
    assert len(LINES) == 35
    assert len(COMMANDS) == 35 - 3 + 12 + 4 + 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_launcher_s_command_line_makes_a_case(command, tmp_path):
    arguments = with_bare_values(["run", *shlex.split(command), "--device", "cpu", "--print-config"])

    done = typer.testing.CliRunner().invoke(gpt_parallel.cli.app, arguments)

    assert done.exit_code == 0, done.output
    path = tmp_path / "printed.yaml"
    path.write_text(done.stdout, encoding="utf-8")
    settings = make_settings("cpu", {}, read_config(path).values)
    spec = Suite(settings).spec(*_choose_case(settings))
    words = shlex.split(command)
    given = dict(itertools.pairwise(words))
    assert spec.strategy == given["--strategy"]
    assert spec.mesh.size == int(given["--num_gpus"])
    assert len(spec.workload.requests) == int(given["--num_samples"])
    assert spec.workload.batch_size == int(given.get("--batch_size", spec.workload.batch_size))
    assert spec.execution.warmup == int(given.get("--warmup_steps", 1))
    assert spec.execution.rounds == int(given.get("--num_iterations", 3))
    assert spec.execution.timeout_s == float(given.get("--timeout", 300))
    assert (spec.execution.dtype == "bfloat16") == ("--mixed_precision" in words)
    assert (spec.execution.attention == "flash") == ("--enable_memory_efficient_attention" in words)
    assert (spec.execution.profile is not None) == ("--enable_profiling" in words)
    assert settings.offline == ("--offline_mode" in words)
    for name in ("tensor", "pipeline", "data"):
        if degree := given.get(f"--{name}_parallel_size"):
            assert getattr(spec.mesh, {"tensor": "tp", "pipeline": "pp", "data": "dp"}[name]) == int(degree)


def test_such_a_command_runs(tmp_path):
    done = run_cli(
        *("run", "--preset", "smoke", "--device", "cpu", "--strategy", "full_model_parallel", "--num_gpus", "2"),
        *("--tensor_parallel_size", "2", "--num_samples", "3", "--batch_size", "2", "--max_length", "1024"),
        *("--num_iterations", "1", "--mixed_precision", "--enable_memory_efficient_attention", "--verbose"),
        *("--gradient_checkpointing", "--master_port", "29501", "--save_detailed_metrics", "--output_dir", "results/x"),
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "672 tokens compared with a single-device run" in done.stdout
    assert "note: max_length 1024 is cut to 224 (3 of 3 requests): the model has 256 positions" in done.stderr
    assert "note: master port 29501 is not used" in done.stderr
    assert "note: detailed metrics are always saved" in done.stderr
    assert (tmp_path / "results/x/result.json").exists()


def options_of(text):
    return set(re.findall(r"--[a-z_-]+[a-z]", text))


@pytest.mark.parametrize("name", ["coming-from.md", "coming-from.zh-CN.md"])
def test_the_page_names_options_that_exist(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    commands = [("run",), ("data", "generate"), ("data", "validate"), ("report",)]
    runner = typer.testing.CliRunner()
    known = {
        option
        for command in commands
        for option in options_of(
            runner.invoke(gpt_parallel.cli.app, [*command, "--help"], env={"COLUMNS": "300"}).stdout
        )
    }
    known |= {f"--gpt-{option.name}" for option in options()}

    assert {option.replace("_", "-") for option in options_of(text)} <= known


def test_both_languages_have_the_same_commands_and_options():
    english, chinese = ((ROOT / "docs" / f"coming-from{tail}.md").read_text("utf-8") for tail in ("", ".zh-CN"))

    assert options_of(english) == options_of(chinese)
    assert set(re.findall(r"`([^`]*)`", english)) == set(re.findall(r"`([^`]*)`", chinese))


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (("--num_samples", "5", "--output", "data/custom_test.jsonl"), {"data/custom_test.jsonl"}),
        (("--benchmark", "--num_configs", "2", "--num_samples", "5"), {"prompts_1x256.jsonl", "prompts_5x256.jsonl"}),
    ],
)
def test_the_generator_s_command_lines(arguments, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    done = typer.testing.CliRunner().invoke(gpt_parallel.cli.app, ["data", "generate", *arguments])

    assert done.exit_code == 0, done.output
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl")} == files
