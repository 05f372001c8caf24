"""Many cells in a row: their order, their failures, interruption, and what is left at the end."""

import io
import json
import os
import signal
import subprocess

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.journal import Finished, Journal, JournalError, make_header
from gpt_parallel.bench.matrix import Cell, Matrix, make_cells
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli import app
from gpt_parallel.cli.matrix_progress import MatrixProgress, clock_time
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.gpu_memory import GpuMemoryError
from gpt_parallel.schema.model import ModelSpec
from tests.cli.test_commands import SMOKE, command, run_cli
from tests.support.factories import summary
from tests.support.processes import heed_ctrl_c


def smoke(**given):
    return make_settings("smoke", {"device": "cpu", "num_gpus": "1,2", **given})


class Silent:
    def started(self, number, cell):
        pass

    def phase(self, rank, phase):
        pass

    def finished(self, number, finished):
        pass


@pytest.fixture
def play(monkeypatch, tmp_path):
    """play(settings, batch_sizes, outcomes) runs a matrix whose launches do as told; the journal and the record."""

    def play(settings, batch_sizes=(2,), outcomes=None, resume=False, forget=()):
        ran = []

        def run(suite, spec):
            name = f"{spec.name}-batch{spec.workload.batch_size}"
            ran.append(name)
            outcome = (outcomes or {}).get(name)
            if outcome is not None:
                raise outcome
            return name

        monkeypatch.setattr(Suite, "run", run)
        monkeypatch.setattr(
            "gpt_parallel.bench.matrix.summarise", lambda results: summary(strategy=results[0].split("-")[0])
        )
        cells = make_cells(settings, batch_sizes)
        with Journal(tmp_path / "matrix.jsonl", make_header("matrix", settings), resume=resume, force=False) as journal:
            journal.forget(*forget)
            matrix = Matrix(settings, cells, Silent())
            matrix.check()
            record = matrix.run(journal)
        return ran, journal.finished, record

    return play


def test_cells_are_strategies_by_counts_by_batch_sizes():
    cells = make_cells(smoke(strategy="tensor_data_hybrid,pure_data_parallel"), (4, 1))

    assert cells == [
        Cell("pure_data_parallel", 1, 4),
        Cell("pure_data_parallel", 2, 4),
        Cell("tensor_data_hybrid", 2, 4),
        Cell("pure_data_parallel", 1, 1),
        Cell("pure_data_parallel", 2, 1),
        Cell("tensor_data_hybrid", 2, 1),
    ]
    assert make_cells(smoke(num_gpus="4", tensor_parallel_size="2"), (4,)) == [Cell("custom", 4, 4)]
    with pytest.raises(SpecError, match="unknown strategy 'tensor'; allowed: pure"):
        make_cells(smoke(strategy="tensor"), (4,))
    with pytest.raises(SpecError, match="no strategy asked for exists on 1 device"):
        make_cells(smoke(strategy="tensor_data_hybrid", num_gpus="1"), (4,))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (LaunchError("rank 0 failed", out_of_memory=True), "oom"),
        (LaunchError("rank 0 failed"), "failed"),
        (GpuMemoryError("rank 0 failed"), "oom"),
    ],
)
def test_a_failed_cell_is_marked_and_the_others_go_on(play, error, outcome):
    ran, finished, record = play(smoke(), outcomes={"tensor_data_hybrid-2gpu-batch2": error})

    assert len(ran) == 5
    assert finished["tensor_data_hybrid-2gpu-batch2"].outcome == outcome
    assert finished["tensor_data_hybrid-2gpu-batch2"].reason == "rank 0 failed"
    assert [cell.outcome for cell in finished.values()].count("passed") == 4
    (left_out,) = record.not_run
    assert left_out["outcome"] == "failed"
    assert len(record.summaries) == 4


def test_a_cell_whose_devices_are_busy_is_marked_and_the_others_go_on(play):
    busy = SpecError("2 CPU core(s) are needed, and other runs leave 1")
    ran, finished, record = play(smoke(), outcomes={"tensor_data_hybrid-2gpu-batch2": busy})

    assert len(ran) == 5
    assert finished["tensor_data_hybrid-2gpu-batch2"].outcome == "failed", "it may be tried again"
    assert record.not_run[0]["reason"] == str(busy)
    assert len(record.summaries) == 4


def test_a_cell_the_model_is_too_small_for_is_skipped_with_its_reason(play):
    """gpt2-nano has 4 layers: pipelines of 8 stages cannot be."""
    ran, finished, record = play(smoke(num_gpus="1,16", strategy="pure_data_parallel,full_model_parallel"))

    assert ran == ["pure_data_parallel-1gpu-batch2", "pure_data_parallel-16gpu-batch2"]
    skipped = finished["full_model_parallel-16gpu-batch2"]
    assert (skipped.outcome, "larger than gpt2-nano's 4 layers" in skipped.reason) == ("skipped", True)
    assert record.not_run[0]["outcome"] == "skipped"


def test_what_no_cell_can_run_with_is_a_wrong_request(play):
    with pytest.raises(SpecError, match="no such directory, and not a known model"):
        play(smoke(model="nosuch"))


def test_an_interrupted_matrix_goes_on_where_it_stopped(play):
    with pytest.raises(KeyboardInterrupt):
        play(smoke(), outcomes={"tensor_data_hybrid-2gpu-batch2": KeyboardInterrupt()})

    ran, finished, record = play(smoke(), resume=True)

    assert ran == [
        f"{name}-2gpu-batch2" for name in ("tensor_data_hybrid", "pipeline_data_hybrid", "full_model_parallel")
    ]
    assert len(finished) == len(record.summaries) == 5


def test_a_finished_matrix_starts_anew(play):
    first, *_ = play(smoke(num_gpus="1"))

    assert play(smoke(num_gpus="1"))[0] == first


def test_failed_cells_are_kept_unless_they_are_to_be_tried_again(play):
    name = "tensor_data_hybrid-2gpu-batch2"
    play(smoke(), outcomes={name: LaunchError("rank 0 failed")})

    assert play(smoke(), resume=True)[0] == []
    ran, finished, _ = play(smoke(), resume=True, forget=("failed", "oom"))
    assert ran == [name]
    assert finished[name].outcome == "passed"


def test_resuming_with_other_cells_adds_them_and_with_other_work_is_refused(play):
    play(smoke(num_gpus="1"))

    ran, _, record = play(smoke(num_gpus="1,2", strategy="pure_data_parallel", timeout_s="9"), (2, 4), resume=True)

    assert ran == [f"pure_data_parallel-{cell}" for cell in ("2gpu-batch2", "1gpu-batch4", "2gpu-batch4")]
    assert len(record.summaries) == 4
    with pytest.raises(SpecError, match="max_length was 8 and is 9"):
        play(smoke(num_gpus="1", max_length="9"), resume=True)


def test_a_prompts_file_that_changed_is_other_work(tmp_path):
    prompts = tmp_path / "p.jsonl"
    headers = []
    for text in ("one", "two"):
        prompts.write_text(json.dumps({"prompt": text}))
        headers.append(make_header("matrix", smoke(prompts=str(prompts))).settings)

    assert headers[0] != headers[1]
    with pytest.raises(SpecError, match=r"absent.jsonl: cannot be read"):
        make_header("matrix", smoke(prompts="absent.jsonl"))


@pytest.mark.timeout(20)
def test_a_prompts_file_that_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")

    with pytest.raises(SpecError, match=r"p.jsonl: cannot be read \(is a named pipe"):
        make_header("matrix", smoke(prompts=str(tmp_path / "p.jsonl")))


def test_weights_that_changed_are_other_work(monkeypatch, tmp_path):
    model = ModelSpec(
        name="mine",
        architecture=ARCHITECTURES["gpt2-nano"],
        weights="checkpoint",
        directory=str(tmp_path),
        files=("a.safetensors", "b.safetensors"),
    )
    monkeypatch.setattr("gpt_parallel.bench.environment.resolve_model", lambda *given, offline: model)
    for name in ("a.safetensors", "b.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, ns=(1, 1))
    before = make_header("matrix", smoke()).settings
    os.utime(tmp_path / "b.safetensors", ns=(1, 2))
    os.utime(tmp_path / "README.md", ns=(1, 2))
    after = make_header("matrix", smoke()).settings

    assert {name for name in before if name.startswith("file ")} == {
        *("file a.safetensors", "file b.safetensors", "file config.json")
    }
    assert before["file a.safetensors"] == "1 bytes of 1"
    assert [name for name in after if before[name] != after[name]] == ["file b.safetensors"]


def test_a_model_that_cannot_be_had_is_left_to_the_run_to_refuse():
    assert make_header("matrix", smoke(model="nosuch")).settings["model"] == "nosuch"


def test_a_variable_that_changes_figures_makes_other_runs(monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    before = make_header("matrix", smoke()).machine
    monkeypatch.setenv("OMP_PROC_BIND", "close")

    assert make_header("matrix", smoke()).machine == {**before, "OMP_PROC_BIND": "close"}


def test_launches_are_kept_apart_as_in_pytest(play):
    ran, _, _ = play(smoke(num_gpus="1", launches="3"))

    assert ran == ["pure_data_parallel-1gpu-batch2"] * 3


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_line_for_each_cell(is_terminal):
    output = io.StringIO()
    times = iter([0.0, 10.0, 10.0, 40.0, 40.0])
    console = Console(file=output, width=200, force_terminal=is_terminal, markup=False, highlight=False)

    with MatrixProgress(console, num_cells=3, num_to_run=2, clock=lambda: next(times)) as progress:
        progress.started(2, Cell("pure_data_parallel", 2, 4))
        progress.phase(0, "round 1 of 3")
        progress.finished(2, Finished(cell="x-2gpu", outcome="passed", summary=summary()))
        progress.started(3, Cell("pure_data_parallel", 4, 4))
        progress.finished(3, Finished(cell="y-4gpu", outcome="oom", reason="no room\nmore"))

    printed = output.getvalue()
    assert "[2/3] x-2gpu: 100.0 tokens/s, exact (elapsed 0:10, about 0:10 left)\n" in printed
    assert "[3/3] y-4gpu: OUT OF MEMORY, no room (elapsed 0:40)\n" in printed
    assert is_terminal or len(printed.splitlines()) == 2


def test_times_are_as_on_a_clock():
    assert [clock_time(seconds) for seconds in (0, 59.6, 3599, 3600 * 30 + 61)] == ["0:00", "1:00", "59:59", "30:01:01"]


def test_the_command_ends_in_table_and_report(tmp_path):
    arguments = ("--num-gpus", "1,2", "--strategy", "pure_data_parallel", "--batch-sizes", "2,4", "--output-dir", "out")

    done = run_cli("matrix", *SMOKE, *arguments, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("speed-up   efficiency") == 2, "a table for each batch size"
    assert "[4/4] pure_data_parallel-2gpu-batch4: " in done.stderr
    saved = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    assert [bench["params"] for bench in saved["benchmarks"]] == [
        {"strategy": "pure_data_parallel", "num_gpus": count, "batch_size": size} for size in (2, 4) for count in (1, 2)
    ]
    assert all(bench["extra_info"]["verified"] == "exact" for bench in saved["benchmarks"])
    assert (tmp_path / "out" / "report.html").exists()
    report = (tmp_path / "out" / "performance_report.txt").read_text()
    assert report.count("devices  mesh  batch") == 1, "rows of two batch sizes can be told apart"

    again = run_cli("matrix", *SMOKE, *arguments, "--resume", cwd=tmp_path)
    assert again.returncode == 0
    assert "4 of 4 cells are in out/matrix.jsonl already" in again.stderr
    assert again.stdout == done.stdout


def test_ctrl_c_leaves_a_journal_to_go_on_with(tmp_path):
    process = subprocess.Popen(
        command("matrix", *SMOKE, "--num-gpus", "1,2", "--strategy", "pure_data_parallel", "--num-iterations", "150"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    with process:
        first = process.stderr.readline()
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(30)

    assert first.startswith("[1/2] pure_data_parallel-1gpu-batch2: ")
    assert code == 130
    assert "1 of 2 cells are kept in reports/matrix/matrix.jsonl; the same command with --resume goes on" in rest
    assert not any(rank.is_running() for rank in ranks)
    lines = [json.loads(line) for line in (tmp_path / "reports/matrix/matrix.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["matrix", "cell"]
    refused = run_cli("matrix", *SMOKE, cwd=tmp_path)
    assert refused.returncode == 2
    assert "go on with --resume" in refused.stderr


def test_a_full_disk_is_one_message(tmp_path, monkeypatch, capsys):
    def full(self, cell):
        raise JournalError("journal x: cannot be written any more (No space left on device)")

    monkeypatch.setattr(Journal, "add", full)
    monkeypatch.setattr(Suite, "run", lambda suite, spec: pytest.fail("not reached"))
    monkeypatch.setattr("gpt_parallel.bench.matrix.reason_to_skip", lambda settings, count: "not today")

    done = CliRunner().invoke(app, ["matrix", "--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path)])

    assert done.exit_code == 1
    assert "No space left on device); what it has is kept, and the same command with --resume goes on" in done.output


def test_a_failing_cell_is_exit_code_1(tmp_path):
    done = run_cli("matrix", *SMOKE, "--num-gpus", "1", "--timeout", "0.001", cwd=tmp_path)

    assert done.returncode == 1
    assert "pure_data_parallel-1gpu-batch2: FAILED, the single-device reference run: the run did not" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-sizes", "2,x"), "--batch-sizes '2,x': must be sizes with commas between them"),
        (("--batch-sizes", "0"), "must be sizes"),
        (("--strategy", "nosuch"), "unknown strategy 'nosuch'"),
        (("--resume", "--force"), "either --resume or --force"),
        (("--retry-failed",), "--retry-failed needs --resume"),
        (("--model", "nosuch"), "not a known model"),
        (("--attention", "efficient"), "attention 'efficient' is a CUDA kernel"),
        (("--memory-efficient-attention",), "on CPU use 'auto' or 'flash'"),
    ],
)
def test_wrong_requests_start_nothing(arguments, message, tmp_path):
    done = run_cli("matrix", *SMOKE, *arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
