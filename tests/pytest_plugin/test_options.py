"""What pytest users may write where: options, a file, ini values, and aliases."""

import pytest
import yaml

from tests.pytest_plugin.test_plugin import collected, run_pytest


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\ngpt_preset = smoke\ngpt_batch_size = 7\ngpt_seed = 7\n")
    (tmp_path / "mine.yaml").write_text("workload:\n  seed: 8\n  max_length: 8\n  num_samples: null\n")
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")
    return tmp_path


def printed(project, *arguments):
    done = run_pytest("--gpt-print-config", *arguments, cwd=project, where="test_mine.py")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_options_win_over_the_file_and_the_file_over_ini_values(project):
    without = printed(project)["workload"]
    assert (without["batch_size"], without["seed"], without["num_samples"]) == (7, 7, 8)

    found = printed(project, "--gpt-config", "mine.yaml", "--gpt-max-length", "9")["workload"]

    assert (found["batch_size"], found["seed"], found["max_length"], found["num_samples"]) == (7, 8, 9, None)


def test_what_is_printed_can_be_fed_back(project):
    first = run_pytest("--gpt-print-config", "--gpt-config", "mine.yaml", cwd=project, where="test_mine.py").stdout
    (project / "again.yaml").write_text(first)

    again = run_pytest("--gpt-print-config", "--gpt-config", "again.yaml", cwd=project, where="test_mine.py").stdout

    assert again == first


def test_options_are_understood_with_hyphens_and_underscores(project):
    found = printed(project, "--gpt-num_gpus", "2", "--gpt_batch_size=3", "--gpt-no_verify", "--gpt-mixed_precision")

    assert (found["mesh"]["num_gpus"], found["workload"]["batch_size"], found["execution"]["verify"]) == ("2", 3, False)
    assert found["execution"]["dtype"] in ("bfloat16", "float16")


def test_the_help_keeps_one_spelling(project):
    text = run_pytest("--help", cwd=project, where="test_mine.py").stdout

    assert "--gpt-num-gpus=" in text
    assert "--gpt-num_gpus" not in text
    assert "--gpt_num_gpus" not in text


def test_saying_the_same_by_option_and_alias_is_no_contradiction(project):
    assert printed(project, "--gpt-offline", "--gpt-offline-mode")["model"]["offline"] is True


def test_a_case_runs_with_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "preset: smoke\nworkload: {num_samples: 2, batch_size: 1, max_length: 3}\n"
        "mesh: {strategy: pipeline_data_hybrid, num_gpus: 2}\n"
    )

    done = run_pytest("--gpt-config", str(tmp_path / "mine.yaml"), "--gpt-num-iterations", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "2 requests × (32 + 3 tokens), batch 1" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload:\n  batchsize: 3\n", "workload.batchsize: unknown key; did you mean 'batch_size'?"),
        ("execution:\n  attention: efficient\n", "attention 'efficient' is a CUDA kernel"),
        ("mesh:\n  strategy: nosuch\n", "unknown strategy 'nosuch'; allowed: pure_data_parallel"),
        (None, "absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_file_is_a_usage_error(tmp_path, text, message):
    path = tmp_path / ("mine.yaml" if text else "absent.yaml")
    if text:
        path.write_text(text)

    done = run_pytest("--gpt-preset", "smoke", "--gpt-config", str(path), "--gpt-num-gpus", "1,2")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_cases_can_be_narrowed_to_strategies():
    assert collected("--gpt-strategy", "tensor_data_hybrid,full_model_parallel", "--gpt-num-gpus", "1,2") == [
        "tensor_data_hybrid-2gpu",
        "full_model_parallel-2gpu",
    ]


def test_classic_names_stand_for_settings_or_are_answered(project):
    found = printed(project, "--gpt-mixed-precision", "bfloat16", "--gpt-memory-efficient-attention")["execution"]
    assert found["dtype"] == "bfloat16"
    assert found["attention"] in ("efficient", "flash")  # on CUDA and on CPU

    done = run_pytest(
        *("--gpt-gradient-checkpointing", "--gpt-master-port", "29500"), cwd=project, where="test_mine.py"
    )

    assert done.returncode == 0
    assert "gpt_parallel: gradient checkpointing saves nothing here: generation keeps no gradients" in done.stdout
    assert "gpt_parallel: master port 29500 is not used" in done.stdout
    wrong = run_pytest("--gpt-mixed-precision", "int8", cwd=project, where="test_mine.py")
    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR
    assert "mixed-precision = 'int8': allowed are bfloat16, float16" in wrong.stderr
