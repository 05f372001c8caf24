"""Every fault of a rank, injected into runs of two CPU ranks: told at once, by name, and only that case fails."""

import json
import os
import time
from math import inf
from pathlib import Path
from typing import NamedTuple

import pytest

from gpt_parallel import load_result
from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import InjectedFaultError, Suite
from gpt_parallel.bench.verifier import VerificationError
from gpt_parallel.inputs.settings import Settings, make_settings
from gpt_parallel.launch import fork_server, watch
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.report.compare.comparable import reason_unverified
from gpt_parallel.report.findings import _verification
from gpt_parallel.report.saved_run import ReportError, load_run
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.result import Figures, Verification
from tests.cli.test_commands import SMOKE, run_cli
from tests.support import warm
from tests.support.factories import bench, document, summary
from tests.support.halting import benchmarks, journal, run
from tests.support.paths import ROOT
from tests.support.processes import environment, ranks_alive

TP, PP, DP = "tensor_data_hybrid", "pipeline_data_hybrid", "pure_data_parallel"
SMALL = {"num_samples": 4, "prompt_tokens": 8, "max_length": 6, "batch_size": 2, "num_iterations": 2, "device": "cpu"}
PHASES = {
    "connect": "connect",
    "load": "load weights",
    "verification": "generate for verification",
    "decode": "round 1 of 2",
    "round": "round 1 of 2",
    "finish": "finish",
}
DEADLINE_S = 5.0


class Failed(NamedTuple):
    error: LaunchError
    message: str


@pytest.fixture
def make_suite(tmp_path):
    return lambda fault=None, on_phase=None, **settings: Suite(
        make_settings("smoke", {**SMALL, "verify": False, "log_dir": str(tmp_path / "logs"), **settings}),
        on_phase,
        FaultSpec.parse(fault) if fault else None,
    )


@pytest.fixture(autouse=True)
def _warm(make_suite):
    """What ranks are forked of is there before any deadline is set."""
    if fork_server._current is None or not fork_server._current.is_usable():
        make_suite().run(make_suite().spec(DP, 1), timed=False)


@pytest.fixture
def fail(make_suite):
    """fail(fault, strategy) runs that case, which must fail and leave no rank; the next one must pass.

    What must be told within `within_s` seconds gets three tries, for others may use this machine too.
    """

    def once(fault, strategy, settings):
        entered = []
        suite = make_suite(fault, lambda rank, phase: entered.append(time.monotonic()), **settings)
        with pytest.raises(LaunchError) as failure:
            suite.run(suite.spec(strategy, 2))
        delay_s = time.monotonic() - entered[-1]  # from the last phase of any rank, so a little before the fault
        assert ranks_alive() == []
        return failure.value, delay_s

    def fail(fault, strategy=TP, within_s=inf, **settings):
        for _ in range(3):
            error, delay_s = once(fault, strategy, settings)
            if delay_s < within_s:
                break
        else:
            pytest.fail(f"it was told after {delay_s:.1f} s, three times not within {within_s} s")
        healthy = make_suite(**settings)
        assert healthy.run(healthy.spec(strategy, 2)).figures.throughput_tok_s > 0
        return Failed(error, str(error))

    return fail


@pytest.mark.parametrize("phase", ["load", "verification", "decode"])
@pytest.mark.parametrize(
    ("strategy", "backend", "rank"),
    [(TP, "shm", 1), (PP, "gloo", 0), (DP, "shm", 1)],
)
def test_a_raising_rank_is_told_with_phase_and_traceback(fail, strategy, backend, rank, phase):
    failed = fail(f"{phase}:{rank}:raise", strategy, within_s=5, backend=backend)

    head, *rest = failed.message.splitlines()
    assert head == (
        f"rank {rank} failed in phase {PHASES[phase]!r}: RuntimeError: injected error "
        f"(fault injected: {phase}:{rank}:raise)"
    )
    assert rest[1] == "Traceback (most recent call last):"
    assert "in raise_error" in failed.message


@pytest.mark.parametrize(
    ("phase", "strategy", "backend"),
    [
        ("decode", TP, "shm"),
        ("decode", TP, "gloo"),
        ("decode", PP, "shm"),
        ("decode", PP, "gloo"),
        ("decode", DP, "shm"),
        ("verification", TP, "shm"),
        ("load", PP, "shm"),
        ("connect", DP, "gloo"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_at_once(fail, monkeypatch, phase, strategy, backend, rank):
    """Its peers need not show whether theirs is the cause."""
    monkeypatch.setattr(watch, "_SETTLE_S", 100.0)

    failed = fail(f"{phase}:{rank}:sigkill", strategy, within_s=2, backend=backend)

    killed = f"rank {rank} killed by signal 9 (SIGKILL; out-of-memory killer?) in phase {PHASES[phase]!r} "
    assert failed.message.startswith(f"{killed}(fault injected: {phase}:{rank}:sigkill)\n")


@pytest.mark.parametrize(
    ("fault", "strategy", "backend", "line"),
    [
        ("decode:1:sigstop", TP, "shm", "faults.py"),
        ("verification:0:sigstop", PP, "gloo", "faults.py"),
        ("load:1:hang", DP, "shm", "in hang"),
        pytest.param("decode:0:hang", TP, "gloo", "in hang", marks=pytest.mark.slow),
        ("decode:1:hang_in_collective", TP, "shm", "in _await"),
        ("decode:0:hang_in_collective", DP, "gloo", "in recv"),
        pytest.param("decode:1:hang_in_collective", PP, "gloo", "in recv", marks=pytest.mark.slow),
    ],
)
def test_the_deadline_shows_where_every_rank_is(fail, fault, strategy, backend, line):
    phase, rank, action = fault.split(":")

    failed = fail(fault, strategy, backend=backend, timeout_s=DEADLINE_S)

    head, *sections = failed.message.split("\n\n")
    stacks = {section[:6]: section for section in sections if ", most recent call first:\n" in section}
    assert head.startswith(f"the run did not finish within {DEADLINE_S:g} s: rank 0 was in phase ")
    assert head.endswith(f" (fault injected: {fault})")
    stopped = ", stopped by a signal" * (action == "sigstop")
    assert f"rank {rank} was in phase {PHASES[phase]!r}{stopped}" in head
    assert head.count("stopped") == (action == "sigstop")
    assert sorted(stacks) == ["rank 0", "rank 1"]
    assert line in "\n".join(stacks[f"rank {rank}"].splitlines()[:6])


@pytest.mark.parametrize("phase", ["verification", "finish"])
@pytest.mark.parametrize(("rank", "backend", "strategy"), [(0, "shm", TP), (1, "shm", DP), (1, "gloo", PP)])
def test_exiting_well_without_a_result_is_a_failure(fail, phase, rank, backend, strategy):
    """Others may lose their peer first, but the rank that went away is the one to name."""
    failed = fail(f"{phase}:{rank}:exit_0", strategy, backend=backend)

    assert failed.message.startswith(
        f"rank {rank} exited without delivering a result in phase {PHASES[phase]!r} (fault"
    )


def test_another_exit_code_is_told(fail):
    assert fail("decode:1:exit_3").message.startswith("rank 1 exited with code 3 in phase 'round 1 of 2' (fault")


@pytest.mark.parametrize("fault", ["load:1:out_of_memory", "decode:0:out_of_memory"])
@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_out_of_memory_is_told_with_what_is_needed_and_nothing_stays_in_memory(fail, fault, backend):
    phase, rank, _ = fault.split(":")

    failed = fail(fault, backend=backend)

    head, needed = failed.message.splitlines()[:2]
    assert head.startswith(f"out of memory: rank {rank} failed in phase {PHASES[phase]!r}: OutOfMemoryError: simulated")
    assert needed.startswith("the largest rank needs about 0.")
    assert " GiB for its weights, cache and process; use a smaller batch" in needed
    holders = (os.getpid(), fork_server._current.pid)
    opened = [os.readlink(path) for pid in holders for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    assert not [target for target in opened if "gpt_parallel" in target and "memfd" in target]


SAMPLED = {"temperature": 0.8, "seed": 3}
FILTERED = {**SAMPLED, "top_k": 20}


@pytest.mark.parametrize("phase", ["verification", "decode"])
@pytest.mark.parametrize(
    ("strategy", "injected", "named", "place", "sampling"),
    [
        (TP, 0, 0, "request 0, new token 2", {}),
        (TP, 1, 1, "request 0, new token 2", {}),
        (TP, 1, 1, "request 0, new token 2", SAMPLED),
        (TP, 1, 1, "request 0, new token 2", FILTERED),
        (DP, 1, 1, "request 2, new token 2", {}),
        (DP, 0, 0, "request 0, new token 2", FILTERED),
        (PP, 1, 1, "request 0, new token 1", {}),
        (PP, 0, 1, "request 2, new token 1", SAMPLED),  # its activations, so the logits of the stage that has the head
    ],
)
def test_logits_that_are_no_numbers_are_told_with_their_rank_and_step(
    fail, phase, strategy, injected, named, place, sampling
):
    failed = fail(f"{phase}:{injected}:nan_logits", strategy, **sampling)

    assert failed.message.startswith(
        f"rank {named} failed in phase {PHASES[phase]!r}: ArithmeticError: {place}: the logits are not finite (NaN or "
    )


def test_a_fault_that_a_run_survives_leaves_no_figures(make_suite):
    """Not even with every token verified."""
    suite = make_suite("warmup:1:nan_logits", warmup=2, verify=True, breakdown=True)

    with pytest.raises(
        InjectedFaultError, match=r"the run succeeded, but .*\(fault injected: warmup:1:nan_logits\)"
    ) as caught:
        suite.run(suite.spec(TP, 2))

    result = caught.value.result
    assert isinstance(caught.value, VerificationError)
    assert (result.verification.status, result.verification.passed) == ("fault-injected", False)
    assert result.figures == Figures()
    assert (result.energy, result.efficiency, result.gpus) == (None, None, ())
    assert all(
        (rank.rounds, rank.diagnostics.breakdown, rank.diagnostics.peak_rates, rank.diagnostics.telemetry)
        == ((), *[None] * 3)
        for rank in result.ranks
    )
    assert result.outputs


def test_a_fault_that_never_comes_leaves_no_figures_either(make_suite):
    suite = make_suite("decode:1:sigkill")

    with pytest.raises(InjectedFaultError):
        suite.run(suite.spec(DP, 2), timed=False)


def test_the_reference_has_no_fault(make_suite):
    spec = make_suite("decode:0:sigkill").spec(DP, 2)

    assert spec.execution.fault == FaultSpec(phase="decode", rank=0, action="sigkill")
    assert spec.single_device().execution.fault is None


def test_a_mismatch_says_that_it_was_asked_for(make_suite):
    spec = make_suite("warmup:1:nan_logits").spec(DP, 2)
    mismatch = Verification(status="mismatch", problems=("round 1: …",))

    head, problem = str(VerificationError(spec, mismatch)).splitlines()

    assert head.endswith("timings are not valid (fault injected: warmup:1:nan_logits)")
    assert problem == "  round 1: …"


def run_pytest(directory, *arguments):
    options = ("--gpt-preset", "smoke", "--gpt-device", "cpu", "--gpt-num-iterations", "1", "-k", "tensor and 2gpu")
    return warm.run(
        [
            *(warm.PYTEST, "benchmarks", "-p", "no:cacheprovider", *options, *arguments),
            *("--gpt-report", str(directory / "report"), "--benchmark-json", str(directory / "saved.json")),
        ],
        cwd=ROOT,
        env=environment(),
    )


@pytest.mark.parametrize(
    ("fault", "options", "told"),
    [
        (
            "decode:1:out_of_memory",
            (),
            "out of memory: rank 1 failed in phase 'round 1 of 1': OutOfMemoryError: simulated",
        ),
        (
            "warmup:1:nan_logits",
            ("--gpt-warmup", "2"),
            "its measurements do not count (fault injected: warmup:1:nan_logits)",
        ),
    ],
    ids=["failed", "survived"],
)
def test_under_pytest_a_fault_fails_the_case_and_saves_no_timing(tmp_path, fault, options, told):
    done = run_pytest(tmp_path, "--gpt-inject-fault", fault, *options)

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert told in done.stdout
    assert f"(fault injected: {fault})" in done.stdout
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["benchmarks"] == []
    (failed,) = saved["gpt_parallel"]["not_run"]
    assert (failed["outcome"], f"(fault injected: {fault})" in failed["reason"]) == ("failed", True)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "**Key findings**" in page, "an earlier session's report must not stand for this one"
    assert f"(fault injected: {fault})" in page
    assert json.loads((tmp_path / "report" / "benchmarks.json").read_text())["benchmarks"] == []


def test_run_writes_that_a_fault_was_injected_and_exits_1(tmp_path):
    fault = ("--inject-fault", "warmup:1:nan_logits", "--warmup", "2")

    done = run_cli("run", *SMOKE, "--strategy", TP, "--num-gpus", "2", *fault, "--output-dir", "out", cwd=tmp_path)

    assert done.returncode == 1
    assert "its measurements do not count (fault injected: warmup:1:nan_logits)" in done.stderr
    assert done.stdout == ""
    result = load_result(tmp_path / "out" / "result.json")
    assert result.verification.status == "fault-injected"
    assert result.figures == Figures()


def test_a_session_that_goes_on_runs_the_failed_case_again_without_the_fault(tmp_path):
    command = benchmarks(tmp_path / "r", "-k", "2gpu and (tensor or pipeline)")

    broken = run([*command, "--gpt-inject-fault", "decode:1:out_of_memory"])
    first = journal(tmp_path / "r")
    again = run([*command, "--gpt-resume"])

    assert broken.returncode == 1
    assert broken.stdout.count("out of memory: ") >= 2
    assert first == [(f"test_generation[{name}-2gpu]", "failed") for name in (TP, PP)]
    assert again.returncode == 0, again.stdout + again.stderr
    assert "out of memory" not in again.stdout
    assert [outcome for _, outcome in journal(tmp_path / "r")] == ["failed", "failed", "passed", "passed"]


INVALID = [
    (
        "",
        "must be PHASE:RANK:ACTION; phases: connect, load, verification, warmup, round, decode, finish; actions: raise",
    ),
    ("decode:1", "must be PHASE:RANK:ACTION"),
    ("decode:1:explode", "hang_in_collective, exit_0, exit_3, nan_logits, out_of_memory"),
    ("lunch:1:raise", "must be PHASE:RANK:ACTION"),
    ("decode:-1:raise", "must be PHASE:RANK:ACTION"),
    ("decode:١:raise", "must be PHASE:RANK:ACTION"),
    ("decode:1:raise:2", "must be PHASE:RANK:ACTION"),
    ("decode:" + "9" * 5000 + ":raise", "fault 'decode:999"),
    ("load:1:nan_logits", "phase load computes no logits; allowed: verification, warmup, round, decode"),
    ("connect:1:hang_in_collective", "there are no collectives before ranks are connected"),
]


@pytest.mark.parametrize(("text", "told"), INVALID, ids=range(len(INVALID)))
def test_a_fault_that_cannot_be_is_refused(text, told):
    with pytest.raises(SpecError) as refusal:
        FaultSpec.parse(text)

    assert told in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("decode:2:raise", "fault decode:2:raise: there is no rank 2; allowed: 0 to 1"),
        ("decode:0:hang_in_collective", "fault decode:0:hang_in_collective: a single-rank run has no collectives"),
    ],
)
def test_a_fault_that_the_mesh_has_no_place_for_is_refused(make_suite, fault, told):
    with pytest.raises(SpecError, match=told):
        make_suite(fault).spec(DP, 1 if "single-rank" in told else 2)


def test_a_wrong_fault_is_a_usage_error(tmp_path):
    under_pytest = run_pytest(tmp_path, "--gpt-inject-fault", "decode:7:raise")
    by_command = run_cli("run", *SMOKE, "--strategy", TP, "--num-gpus", "2", "--inject-fault", "x", cwd=tmp_path)

    assert under_pytest.returncode == pytest.ExitCode.USAGE_ERROR
    assert "gpt_parallel: fault decode:7:raise: there is no rank 7; allowed: 0 to 1" in under_pytest.stderr
    assert by_command.returncode == 2
    assert "error: fault 'x': must be PHASE:RANK:ACTION" in by_command.stderr


def test_faults_are_for_tests_only():
    """No setting, so neither a file nor an ini value has them, and no command's help."""
    assert not [name for name in Settings.model_fields if "fault" in name]
    assert "inject" not in run_cli("run", "--help").stdout


def test_a_file_that_gives_a_fault_figures_is_refused(make_suite, tmp_path):
    healthy, faulty = make_suite(), make_suite("finish:0:raise")
    result = healthy.run(healthy.spec(DP, 1))
    forged = result.model_copy(update={"spec": faulty.spec(DP, 1)})
    path = tmp_path / "result.json"
    path.write_text(forged.model_dump_json())
    with pytest.raises(SpecError, match="a run with a fault, and no other, has the status 'fault-injected'"):
        load_result(path)

    path.write_text(json.dumps(document(bench(verified="exact"))).replace('"exact"', '"fault-injected"'))
    with pytest.raises(ReportError, match="a case that is 'fault-injected' has no figures"):
        load_run(path)


def test_reports_and_gates_never_take_a_fault_for_verified():
    faulty = summary().model_copy(update={"verified": "fault-injected"})

    assert reason_unverified(faulty, "head") == "the head run was not verified (fault-injected)"
    assert _verification([summary(), faulty]) == "1 of 2 cases are exact; NOT verified: 1."
