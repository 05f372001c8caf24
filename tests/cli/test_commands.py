"""`gpt-parallel` as its users run it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gpt_parallel import load_result
from tests.support import warm
from tests.support.paths import ROOT
from tests.support.processes import heed_ctrl_c

SMOKE = ("--preset", "smoke", "--device", "cpu", "--num-iterations", "1")


def command(*arguments):
    return [str(Path(sys.executable).parent / "gpt-parallel"), *map(str, arguments)]


def run_cli(*arguments, cwd=None):
    return warm.run([warm.GPT_PARALLEL, *arguments], cwd=cwd)


def test_run_with_ones_own_model_and_prompts(tiny_checkpoint, tmp_path):
    model = tiny_checkpoint(n_layer=3, n_head=3, head_size=8, vocab_size=300)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "Grüß Gott", "max_length": 9}\n\n{"prompt_ids": [4, 5, 299]}\n{"prompt": "x"}\n', encoding="utf-8"
    )

    done = run_cli(
        *("run", "--strategy", "full_model_parallel", "--num-gpus", "4", "--model", model, "--prompts", prompts),
        *("--num-samples", "5", "--batch-size", "2", "--max-length", "6", "--output-dir", tmp_path / "out", *SMOKE),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    result = load_result(tmp_path / "out" / "result.json")
    assert str(result.mesh) == "pp2·tp2"
    assert result.verification.status == "exact"
    assert result.verification.tokens_compared == 30
    assert [output.request_id for output in result.outputs] == [0, 1, 2, 3, 4]
    assert result.outputs[0].tokens == result.outputs[3].tokens, "three prompts go round for five samples"
    assert result.spec.workload.requests[0].prompt_ids == tuple("Grüß Gott".encode())
    assert result.weights_origin == f"checkpoint {model}"
    assert "tokens/s" in done.stdout
    assert "exact, 30 tokens compared" in done.stdout
    assert "round 1 of 1" in done.stderr, "progress"


def test_sampling_options_reach_the_ranks(tmp_path):
    case = ("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", "--no-verify", *SMOKE)
    outputs = {}
    for name, extra in {
        "greedy": (),
        "seed 1": ("--temperature", "0.9", "--seed", "1"),
        "seed 2": ("--temperature", "0.9", "--top-k", "50", "--top-p", "0.9", "--seed", "2"),
    }.items():
        done = run_cli(*case, "--output-dir", tmp_path / name, *extra)
        assert done.returncode == 0, done.stderr
        assert "not verified" in done.stdout
        outputs[name] = json.loads((tmp_path / name / "result.json").read_text())["outputs"]
    assert outputs["greedy"] != outputs["seed 1"] != outputs["seed 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "no_such", "--num-gpus", "2"), "unknown strategy 'no_such'; allowed: pure_data_parallel"),
        (
            ("--strategy", "tensor_data_hybrid"),
            "--num-gpus is missing; give the number of devices that tensor_data_hybrid",
        ),
        (("--strategy", "tensor_data_hybrid", "--num-gpus", "3"), "does not exist on 3 device(s); allowed: 2, 4"),
        (("--strategy", "pure_data_parallel", "--num-gpus", "1,2"), "run takes one device count"),
        (
            ("--strategy", "pure_data_parallel", "--num-gpus", "0"),
            "num_gpus = '0': must be comma-separated device counts from 1 to",
        ),
        (
            ("--strategy", "pure_data_parallel", "--num-gpus", "1", "--timeout", "1e12"),
            "timeout_s = '1e12': must",
        ),
        (("--strategy", "pure_data_parallel,tensor_data_hybrid", "--num-gpus", "2"), "run takes one strategy"),
        (("--strategy", "a", "--tensor-parallel-size", "2"), "unknown strategy 'a'; allowed: pure_data_parallel"),
        (
            ("--strategy", "tensor_data_hybrid", "--num-gpus", "4", "--pipeline-parallel-size", "2"),
            "tensor_data_hybrid is tensor and data parallel, with tensor_parallel_size at least 2; "
            "tensor_parallel_size 1 × pipeline_parallel_size 2 × data_parallel_size 2 is not of that kind",
        ),
        (
            ("--strategy", "pure_data_parallel", "--num-gpus", "1", "--attention", "efficient"),
            "attention 'efficient' is a CUDA kernel; on CPU use 'auto' or 'flash'",
        ),
        (("--mixed-precision", "int8"), "mixed-precision = 'int8': allowed are bfloat16, float16"),
        (("--config", "absent.yaml"), "configuration file absent.yaml: cannot be read"),
        (("--tensor-parallel-size", "2", "--num-gpus", "3"), "the product must be 3"),
        (("--tensor-parallel-size", "6"), "tensor_parallel_size 6 is larger than gpt2-nano's 5 attention heads"),
        (("--pipeline-parallel-size", "5"), "pipeline_parallel_size 5 is larger than gpt2-nano's 4 layers"),
        (("--strategy", "pure_data_parallel", "--num-gpus", "1", "--prompts", "absent.jsonl"), "absent.jsonl"),
        (
            ("--strategy", "pure_data_parallel", "--num-gpus", "1", "--warmup", "0"),
            "warmup = '0': must be greater than 0",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    done = run_cli("run", *SMOKE, *arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_numbers_are_one_sentence(tiny_checkpoint, tmp_path):
    """And what an earlier run left in the directory is not there to be taken for this one's."""
    from safetensors.torch import load_file, save_file

    model, out = tiny_checkpoint(), tmp_path / "out"
    arguments = ("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", *SMOKE, "--output-dir", out)
    arguments = (*arguments, "--model", model, "--prompts", "random", "--max-length", "4", "--prompt-tokens", "9")
    assert run_cli(*arguments).returncode == 0
    weights = load_file(model / "model.safetensors")
    weights["transformer.ln_f.weight"][:] = 3e38  # finite, which is all that can be seen of weights beforehand
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    done = run_cli(*arguments)

    assert done.returncode == 1
    assert "request 0, new token 0: the logits are not finite (NaN or infinite weights" in done.stderr
    assert "ValidationError" not in done.stderr
    assert not (out / "result.json").exists()


def test_a_configuration_file_is_enough(tmp_path):
    example = ROOT / "configs" / "one-case.yaml"
    config = tmp_path / "mine.yaml"
    config.write_text(example.read_text().replace("  num_iterations: 2", "  num_iterations: 2\n  launches: 3"))

    done = run_cli("run", "--config", config, "--attention", "math", "--max-length", "3", "--output-dir", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    result = load_result(tmp_path / "result.json")
    assert (result.spec.strategy, str(result.mesh)) == ("full_model_parallel", "pp2·tp2")
    assert (result.spec.execution.attention, result.spec.execution.rounds) == ("math", 2)
    assert result.spec.workload.sampling.top_k == 50
    assert {len(output.tokens) for output in result.outputs} == {3}, "what the command line says wins"
    assert result.weights_origin == "random (seed 7)"
    assert "note: run makes one launch; launches = 3 is for pytest benchmarks" in done.stderr


def test_classic_names_are_understood(tmp_path):
    done = run_cli(
        *("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", "--output-dir", tmp_path, *SMOKE),
        *("--mixed-precision", "bfloat16", "--gradient-checkpointing", "--master-port", "29500", "--no-verify"),
    )

    assert done.returncode == 0, done.stderr
    assert load_result(tmp_path / "result.json").spec.execution.dtype == "bfloat16"
    assert "note: gradient checkpointing saves nothing here: generation keeps no gradients" in done.stderr
    assert "note: master port 29500 is not used" in done.stderr


def test_logs_tell_every_rank_s_phases_and_are_kept_when_a_run_fails(tmp_path):
    arguments = ("run", "--strategy", "pure_data_parallel", "--num-gpus", "2", *SMOKE, "--no-verify")

    done = run_cli(*arguments, "--verbose", "--log-file", tmp_path / "all.log", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    for text in (done.stderr, (tmp_path / "all.log").read_text()):
        assert "pure_data_parallel-2gpu: rank 1: load weights" in text
    assert done.stderr.count("round 1 of 1") == 2, "once for each rank"
    assert '"hidden_size":160' not in done.stderr
    assert '"hidden_size":160' in (tmp_path / "all.log").read_text(), "how the run was resolved"

    late = run_cli(*arguments, "--timeout", "0.01", cwd=tmp_path)

    assert late.returncode == 1
    (directory,) = (tmp_path / "reports" / "logs").iterdir()
    assert f"logs of all ranks: reports/logs/{directory.name}" in late.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["rank_0.log", "rank_1.log"]

    refused = run_cli(*arguments, "--log-file", tmp_path / "absent" / "all.log", cwd=tmp_path)

    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_malformed_prompts_are_named_by_line(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "fine"}\n{"prompt": ""}\n{"prompt_ids": [1, -2]}\nnot json\n')

    done = run_cli("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", "--prompts", prompts, *SMOKE)

    assert done.returncode == 2
    for number in (2, 3, 4):
        assert f"prompts.jsonl:{number}: " in done.stderr
    assert "prompts.jsonl:1" not in done.stderr


def test_a_truncated_checkpoint_is_refused(tiny_checkpoint, tmp_path):
    model = tiny_checkpoint()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    done = run_cli("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", "--model", model, *SMOKE, cwd=tmp_path)

    assert done.returncode == 2
    assert "truncated" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("output", ["file", "file/out"])
def test_an_unwritable_output_directory_is_refused_before_the_run(output, tmp_path):
    (tmp_path / "file").write_text("in the way")

    done = run_cli(
        *("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", *SMOKE),
        *("--output-dir", tmp_path / output),
    )

    assert done.returncode == 2
    assert "cannot be written (a file is in its place)" in done.stderr
    assert "connect" not in done.stderr


@contextmanager
def in_its_rounds(directory):
    """A run in the middle of its timed rounds, and its ranks."""
    process = subprocess.Popen(
        command("run", "--strategy", "tensor_data_hybrid", "--num-gpus", "2", *SMOKE, "--num-iterations", "1000"),
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    with process:
        for line in process.stderr:
            if line.startswith("tensor_data_hybrid-2gpu: round 1 of 1000"):
                break
        yield process, psutil.Process(process.pid).children(recursive=True)


def test_ctrl_c_stops_the_ranks_and_exits_130(tmp_path):
    with in_its_rounds(tmp_path) as (process, ranks):
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(30)

    assert code == 130
    assert "interrupted" in rest
    assert len(ranks) == 3, "two and the server they are forks of"
    assert not any(rank.is_running() for rank in ranks)


def test_killing_the_command_takes_its_ranks_along(tmp_path):
    with in_its_rounds(tmp_path) as (process, ranks):
        os.kill(process.pid, signal.SIGKILL)

    assert len(ranks) == 3, "two and the server they are forks of"
    _gone, alive = psutil.wait_procs(ranks, timeout=5)
    assert alive == []


def test_help_shows_examples_and_version():
    done = run_cli("run", "--help")

    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert run_cli("--version").stdout.startswith("gpt-parallel ")


def test_a_terminal_without_box_characters_gets_tables_in_ascii(tmp_path):
    command_line = command("run", "--strategy", "tensor_data_hybrid", "--num-gpus", "4", *SMOKE, "--breakdown")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, timeout=200)

    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 0, text
    assert "\\u" not in text
    assert "\n ---------" in text
    assert "dp2.tp2" in text
    assert "4*" in text


def test_the_shell_completion_is_printed():
    done = run_cli("--show-completion", "bash")

    assert done.returncode == 0, done.stderr
    assert "_GPT_PARALLEL_COMPLETE" in done.stdout


def test_the_help_lists_options_in_groups_and_in_one_spelling():
    text = run_cli("run", "--help").stdout

    order = [text.index(f" {group} ") for group in ("Configuration", "Layout", "Model", "Work", "Sampling", "Devices")]
    assert order == sorted(order)
    assert "Names that other tools use" in text
    assert "_size" not in text.partition("Examples")[2].replace("pure_data_parallel", "")


def test_a_command_leaves_no_log_handler_behind():
    import logging

    from typer.testing import CliRunner

    from gpt_parallel.cli import app

    for level in ("--verbose", "--debug"):
        assert CliRunner().invoke(app, ["run", "--preset", "smoke", level, "--print-config"]).exit_code == 0

    assert logging.getLogger("gpt_parallel").handlers == []
