"""The suite as pytest users meet it: the real benchmarks directory, in a process of its own."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.pytest_plugin.session_keeper import weights_notes
from gpt_parallel.pytest_plugin.timing import measured_clock, replay_rounds
from tests.support import warm
from tests.support.paths import ROOT
from tests.support.processes import environment

OPTIONS = ("-p", "no:cacheprovider", "--gpt-device", "cpu", "--gpt-no-report")
CASES = [
    "pure_data_parallel-1gpu",
    *(
        f"{strategy}-{n}gpu"
        for n in (2, 4)
        for strategy in (
            "pure_data_parallel",
            "tensor_data_hybrid",
            "pipeline_data_hybrid",
            "full_model_parallel",
        )
    ),
]


def run_pytest(*arguments, cwd=ROOT, where=str(ROOT / "benchmarks"), **variables):
    return warm.run([warm.PYTEST, where, *OPTIONS, *arguments], cwd=cwd, env=environment(**variables))


def collected(*arguments):
    done = run_pytest("--collect-only", "-q", *arguments)
    return [line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "::test_generation[" in line]


def test_collects_the_nine_cases_and_imports_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", *OPTIONS, "--collect-only", "-q"],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 0, done.stderr
    assert [line.split("[")[1][:-1] for line in done.stdout.splitlines() if "[" in line] == CASES


def test_a_case_is_chosen_by_id_or_by_mark():
    assert collected("-k", "4gpu") == CASES[5:]
    assert collected("-m", "gpus(n=2)") == CASES[1:5]
    assert collected("--gpt-num-gpus", "8,2", "-k", "full") == ["full_model_parallel-2gpu", "full_model_parallel-8gpu"]
    sizes = ("--gpt-tensor-parallel-size", "2", "--gpt-pipeline-parallel-size", "2", "--gpt-data-parallel-size", "2")
    assert collected(*sizes) == ["custom-8gpu"]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """One timed smoke run of two cases, with everything pytest-benchmark can save."""
    directory = tmp_path_factory.mktemp("saved")
    done = run_pytest(
        *("--gpt-preset", "smoke", "-k", "pure_data_parallel and not 4gpu", "--benchmark-autosave"),
        *("--benchmark-json", str(directory / "run.json"), "--benchmark-storage", str(directory / "storage")),
        *("--benchmark-save-data", "--benchmark-group-by", "param:strategy"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, done.stdout


def test_json_has_the_ranks_own_times_and_the_figures(saved_run):
    directory, _ = saved_run
    benches = json.loads((directory / "run.json").read_text())["benchmarks"]

    assert [bench["param"] for bench in benches] == CASES[:2]
    for bench, num_gpus in zip(benches, (1, 2), strict=True):
        info, stats = bench["extra_info"], bench["stats"]
        assert (info["strategy"], info["num_gpus"], info["verified"]) == ("pure_data_parallel", num_gpus, "exact")
        assert info["weights"] == "random (seed 0)"
        assert stats["rounds"] == info["rounds"] == 3
        assert info["throughput_tok_s"] == pytest.approx(info["output_tokens"] / stats["median"])
        # Launching takes a second and more; none of it is in the timing.
        assert stats["max"] < 0.5
        assert 0 < info["tpot_s"] < info["ttft_s"] < stats["max"]
        assert {name for name, value in info.items() if isinstance(value, list | dict)} == {
            "launches",
            "peak_memory_bytes_by_rank",
        }
        assert info["launches"][0]["round_seconds"] == stats["data"]


def test_rounds_reach_pytest_benchmark_to_the_bit():
    """Whatever the clock has counted before: a sum of readings would round."""
    seconds = [0.1, 0.2, 0.30000000000000004, 1e-9]
    results = [SimpleNamespace(figures=SimpleNamespace(round_seconds=seconds))]
    measured = []

    def pedantic(target, setup, rounds):
        for _ in range(rounds):
            setup()
            begin = measured_clock()
            target()
            measured.append(measured_clock() - begin)

    assert replay_rounds(SimpleNamespace(pedantic=pedantic), lambda: results, 4) == results

    assert measured == seconds


def test_terminal_ends_with_the_table(saved_run):
    _, output = saved_run
    table = output[output.index("= gpt_parallel =") :]

    assert output.index("benchmark 'strategy=pure_data_parallel'") < output.index("= gpt_parallel =")
    for heading in ("strategy", "devices", "mesh", "tokens/s", "speed-up", "efficiency", "TTFT", "TPOT", "verified"):
        assert heading in table
    assert "1.00×" in table
    assert "weights: random (seed 0)" in table
    assert "2 passed" in table.splitlines()[-1]


def test_benchmark_compare_reads_what_was_saved(saved_run, tmp_path):
    directory, _ = saved_run

    done = run_pytest(
        *("--gpt-preset", "smoke", "-k", "1gpu", "--gpt-num-iterations", "1", "--benchmark-compare"),
        *("--benchmark-storage", str(directory / "storage"), "--benchmark-histogram", str(tmp_path / "histogram")),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_generation[pure_data_parallel-1gpu] (0001_" in done.stdout
    assert "test_generation[pure_data_parallel-1gpu] (NOW)" in done.stdout
    assert list(tmp_path.glob("histogram*.svg"))


def test_parallel_timing_is_refused_and_parallel_verification_is_not(tmp_path):
    refused = run_pytest("-n", "2", "--gpt-preset", "smoke")

    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "cases cannot be timed side by side with pytest-xdist" in refused.stderr

    options = [option for option in OPTIONS if option != "--gpt-no-report"]
    command = [warm.PYTEST, "benchmarks", *options, "--gpt-preset", "smoke", "-n", "2"]
    verified = warm.run(
        [*command, "-k", "pure and not 4gpu", "--benchmark-disable", "--gpt-report", str(tmp_path / "r")],
        cwd=ROOT,
        env=environment(),
    )

    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "2 passed" in verified.stdout
    assert "INCOMPLETE" not in verified.stdout
    assert not (tmp_path / "r").exists()


def test_a_case_of_ones_own_is_not_timed_under_xdist_either(tmp_path):
    """Without the benchmarks directory's conftest, the fixture itself refuses."""
    (tmp_path / "test_mine.py").write_text("def test_mine(gpt_case):\n    gpt_case('pure_data_parallel', 1)\n")

    done = run_pytest("-n", "1", "--gpt-preset", "smoke", cwd=tmp_path, where="test_mine.py")

    assert done.returncode != 0
    assert "cases cannot be timed side by side" in done.stdout + done.stderr


def test_benchmark_disable_verifies_only():
    done = run_pytest("--gpt-preset", "smoke", "-k", "1gpu", "--benchmark-disable")

    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "gpt_parallel: weights: random (seed 0); --gpt-weights checkpoint takes the trained ones of gpt2-nano\n"
        in done.stdout
    )
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("pure_data_parallel"))
    assert row.split()[3:] == ["–", "–", "–", "–", "–", "exact"]


def test_random_weights_by_default_are_noted(monkeypatch, tiny_checkpoint):
    def notes(preset, **given):
        return weights_notes(Suite(make_settings(preset, {"device": "cpu", "offline": "true", **given})))

    monkeypatch.setattr("gpt_parallel.inputs.models._cached", lambda repositories: None)
    for preset, model in (("cpu", "gpt2"), ("xl", "gpt2-xl")):
        note = f"because those of {model} are not on this disk; --gpt-weights checkpoint downloads them"
        assert notes(preset) == [f"weights: random (seed 0), {note}"]
        assert notes(preset, weights="random") == notes(preset, model=str(tiny_checkpoint())) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpt-preset", "huge"), "unknown preset 'huge'; allowed: smoke, cpu, xl"),
        (("--gpt-batch-size", "0", "--gpt-top-p", "2"), "batch_size = '0'"),
        (("--gpt-batch-size", "0", "--gpt-top-p", "2"), "top_p = '2'"),
        (("--gpt-preset", "smoke", "--gpt-tensor-parallel-size", "6"), "larger than gpt2-nano's 5 attention heads"),
        (
            ("--gpt-num-gpus", "4", "--gpt-tensor-parallel-size", "3"),
            "= 3 devices, but num_gpus is 4; the product must be 4",
        ),
        (("--gpt-preset", "smoke", "--gpt-prompt-tokens", "256"), "gpt2-nano has 256 positions"),
        (
            ("--gpt-strategy", "full_model_parallel", "--gpt-data-parallel-size", "4"),
            "full_model_parallel is tensor and pipeline parallel, with tensor_parallel_size or",
        ),
        (("--gpt-model", "no-such-model"), "no such directory, and not a known model"),
        (("--gpt-weights", "checkpoint", "--gpt-offline"), "use weights 'random'"),
        (("--gpt-device", "cuda", "--gpt-preset", "smoke"), "device is 'cuda', but no CUDA GPU"),
        (("--gpt-preset", "smoke", "--gpt-launcher", "srun 'unclosed"), "not a command line (No closing quotation)"),
        (("--gpt-preset", "smoke", "--gpt-launcher", ""), "launcher = ''"),
    ],
)
def test_bad_input_is_one_usage_error_before_any_rank(arguments, message):
    done = run_pytest(*arguments)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


COMPARED = ("--gpt-preset", "smoke", "-k", "1gpu", "--benchmark-compare-fail=median:1000000%")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "-fail needs --benchmark-compare, which names the saved run to compare with (without a name: the last one)",
        ),
        (("--benchmark-compare",), "-fail: no saved run in {} to compare with"),
        (
            ("--benchmark-compare=0007", "--benchmark-autosave"),
            "=0007: no such saved run in {}; without a name it is the last one",
        ),
    ],
)
def test_a_comparison_with_nothing_is_refused_before_the_work(arguments, message, tmp_path):
    done = run_pytest(*COMPARED, f"--benchmark-storage={tmp_path}", *arguments)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    remedy = "a first run needs --benchmark-autosave too, which saves it for later ones\n"
    assert f"gpt_parallel: --benchmark-compare{message.format(tmp_path)}" in done.stderr
    assert remedy in done.stderr
    assert "test_generation" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_first_run_that_is_saved_compares_with_nothing_and_the_next_one_with_it(tmp_path):
    command = (*COMPARED, f"--benchmark-storage={tmp_path}", "--benchmark-compare", "--benchmark-autosave")
    note = f"gpt_parallel: no saved run in {tmp_path} yet, so --benchmark-compare-fail has no effect"

    first, second = run_pytest(*command), run_pytest(*command)

    assert first.returncode == second.returncode == 0, first.stdout + second.stdout
    assert note in first.stdout
    assert note not in second.stdout
    assert "(0001_" in second.stdout, "it is compared with the first"
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_failing_rank_is_told_once():
    done = run_pytest("--gpt-preset", "smoke", "-k", "tensor and 2gpu", "--gpt-inject-fault", "load:1:raise")

    assert done.returncode == 1
    told, _, _ = done.stdout.partition("short test summary info")
    assert told.count("rank 1 failed in phase 'load weights': RuntimeError") == 1, done.stdout
    assert "During handling" not in done.stdout


def test_ini_values_are_defaults_that_options_override(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\ngpt_preset = smoke\ngpt_batch_size = 0\n")
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")

    wrong = run_pytest(cwd=tmp_path, where="test_mine.py")
    right = run_pytest("--gpt-batch-size", "2", cwd=tmp_path, where="test_mine.py")

    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR
    assert "batch_size = '0'" in wrong.stderr
    assert right.returncode == 0


def test_a_registered_strategy_is_run(tmp_path):
    """A user's conftest.py adds a row; its cases appear beside the others."""
    (tmp_path / "conftest.py").write_text(
        "from gpt_parallel import register_strategy\n"
        "from gpt_parallel.schema.run import MeshSpec\n"
        "register_strategy('pipeline_only', lambda n: MeshSpec(pp=n) if n > 1 else None)\n"
    )
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(gpt_case, strategy, num_gpus):\n    assert gpt_case(strategy, num_gpus).mesh.pp == 2\n"
    )

    done = run_pytest(
        "--gpt-preset",
        "smoke",
        "-k",
        "pipeline_only-2gpu",
        "--gpt-num-iterations",
        "1",
        cwd=tmp_path,
        where="test_mine.py",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.fixture(scope="module")
def reported_run(tmp_path_factory):
    """A user's own three cases, one failing after it was timed and one skipped, launched twice, with the report."""
    directory = tmp_path_factory.mktemp("reported")
    (directory / "test_mine.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('num_gpus', [1])\n"
        "@pytest.mark.parametrize('strategy', ['pure_data_parallel'])\n"
        "def test_good(gpt_case, strategy, num_gpus):\n"
        "    gpt_case(strategy, num_gpus)\n\n"
        "def test_bad(gpt_case):\n"
        "    result = gpt_case('pure_data_parallel', 1)\n"
        "    assert result.outputs == (), 'not what I wanted'\n\n"
        "def test_skipped(gpt_case):\n"
        "    pytest.skip('not today')\n"
    )
    options = [option for option in OPTIONS if option != "--gpt-no-report"]
    done = warm.run(
        [
            *(warm.PYTEST, "test_mine.py", *options, "--gpt-preset", "smoke"),
            *("--gpt-launches", "2", "--gpt-num-iterations", "2", "--benchmark-json", "run.json"),
        ],
        cwd=directory,
        env=environment(),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return directory, done.stdout


def test_launches_are_kept_apart(reported_run):
    directory, _ = reported_run
    (bench,) = json.loads((directory / "run.json").read_text())["benchmarks"]

    assert [len(launch["round_seconds"]) for launch in bench["extra_info"]["launches"]] == [2, 2]
    assert bench["stats"]["rounds"] == 4


def test_a_case_that_fails_after_timing_leaves_none(reported_run):
    directory, printed = reported_run
    for name in ("run.json", "reports/latest/benchmarks.json"):
        saved = json.loads((directory / name).read_text())
        assert [bench["name"] for bench in saved["benchmarks"]] == ["test_good[pure_data_parallel-1]"]
        entries = saved["gpt_parallel"]["not_run"]
        assert [(entry["case"], entry["outcome"]) for entry in entries] == [
            ("test_bad", "failed"),
            ("test_skipped", "skipped"),
        ]
    table = printed.rsplit("= gpt_parallel =", 1)[1]
    assert len([line for line in table.splitlines() if "pure_data_parallel" in line]) == 1


def test_the_report_is_there_by_itself_and_says_what_is_missing(reported_run):
    directory, printed = reported_run
    report = directory / "reports" / "latest"

    assert str(report / "report.html") in printed
    written = {path.name for path in report.iterdir()}
    assert written == {
        *("benchmarks.json", "charts", "performance_report.txt", "performance_summary.csv", "report.html", "report.md"),
        "session.jsonl",
    }
    text = (report / "performance_report.txt").read_text()
    assert "Skipped: test_skipped (not today)." in text
    assert "Failed: test_bad (" in text


def test_no_report_where_none_is_wanted(saved_run):
    assert "report.html" not in saved_run[1]


def test_other_engines_stand_beside_ours_in_table_and_report(tmp_path):
    done = warm.run(
        [
            *(warm.PYTEST, str(ROOT / "benchmarks" / "test_baselines.py"), "-p", "no:cacheprovider"),
            *("--gpt-device", "cpu", "--gpt-preset", "smoke", "--gpt-report", str(tmp_path)),
        ],
        cwd=ROOT,
        env=environment(),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    infos = {row["extra_info"]["engine"]: row["extra_info"] for row in rows}
    assert {"gpt_parallel", "transformers"} <= set(infos)
    for info in infos.values():
        assert info["verified"] in ("exact", "tie")
        assert info["workload_sha256"] == infos["gpt_parallel"]["workload_sha256"]
        assert info["rounds"] == 7
    report = (tmp_path / "report.md").read_text()
    assert "| × transformers |" in report
    assert "× the tokens/s of transformers, decoding" in report
