"""A gate passes only what it has reason to pass."""

import json
import math
import xml.etree.ElementTree as ElementTree
from statistics import stdev

import pytest
from typer.testing import CliRunner

from gpt_parallel.cli import app
from gpt_parallel.report.compare.gate import METRICS, decide
from gpt_parallel.report.compare.gate_output import to_github, to_junit, to_text
from gpt_parallel.report.compare.verdicts import Rules, Verdict
from tests.support.factories import bench, document

STEADY = (100.0, 101.0, 99.5, 100.5)
SLOWER = (80.0, 81.0, 79.5, 80.5)
NOISY = (60.0, 100.0, 140.0)


def judged(saved, base, head, **rules):
    """The verdicts of two documents, by case."""
    result = decide(saved("base", base), saved("head", head), Rules(**rules))
    return result, {entry.case: entry for entry in result.verdicts}


def not_run(name, outcome="failed", reason="rank 1 was killed"):
    return {"not_run": [{"case": f"test_generation[{name}]", "outcome": outcome, "reason": reason}]}


def run_gate(*arguments):
    return CliRunner().invoke(app, ["gate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("after", "verdict", "code"),
    [
        (STEADY, Verdict.PASS, 0),
        (tuple(2 * value for value in STEADY), Verdict.PASS, 0),
        (SLOWER, Verdict.FAIL, 1),
        (NOISY, Verdict.INCONCLUSIVE, 3),
        (STEADY[:2], Verdict.INCONCLUSIVE, 3),
    ],
)
def test_verdict_and_exit_code(after, verdict, code, saved):
    result, _ = judged(saved, document(bench(throughputs=STEADY)), document(bench(throughputs=after)))

    assert (result.verdict, result.exit_code) == (verdict, code)


def test_a_small_but_certain_slowdown_is_no_regression(saved):
    """Significance alone is not enough: 2 % slower beyond doubt, and 5 % is tolerated."""
    after = tuple(value * 0.98 for value in STEADY)

    assert judged(saved, document(bench(throughputs=STEADY)), document(bench(throughputs=after)))[0].exit_code == 0


def test_inconclusive_says_how_many_launches_would_tell(saved):
    _, verdicts = judged(saved, document(bench(throughputs=NOISY)), document(bench(throughputs=NOISY[::-1])))

    (entry,) = verdicts.values()
    assert "launches a side would tell" in entry.reason
    assert int(entry.reason.split("about ")[1].split()[0]) > 10


def test_single_launches_are_judged_only_when_asked(saved):
    base = document(bench(throughputs=(100.0,)))
    for after, code in ((99.0, 0), (90.0, 1)):
        head = document(bench(throughputs=(after,)))
        assert judged(saved, base, head)[0].exit_code == 3
        assert judged(saved, base, head, allow_single_launch=True)[0].exit_code == code


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_sees_its_own_regression(metric, saved):
    """The factory's times and memory all follow from its throughput."""
    base, head = document(bench(throughputs=STEADY)), document(bench(throughputs=SLOWER))

    assert judged(saved, base, head, metric=metric)[0].exit_code == 1
    assert judged(saved, head, base, metric=metric)[0].exit_code == 0


def test_thresholds_by_case_first_match_counts(saved):
    base = document(bench("a-2gpu", STEADY), bench("a-4gpu", STEADY))
    head = document(bench("a-2gpu", SLOWER), bench("a-4gpu", SLOWER))

    _, verdicts = judged(saved, base, head, thresholds=(("*4gpu*", 0.5), ("4gpu", 0.01)))

    assert [entry.verdict for entry in verdicts.values()] == [Verdict.FAIL, Verdict.PASS]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"workload_sha256": "cd" * 32}, "differ in workload"),
        ({"verified": "skipped"}, {}, "base run was not verified"),
        ({}, {"verified": "skipped"}, "head run was not verified"),
        ({"cpu": "Intel"}, {}, "differ in processor: Intel and AMD EPYC"),
        ({}, {"device_name": "H100"}, "differ in device: CPU and H100"),
        ({}, {"num_cores": 64}, "differ in number of cores"),
        ({}, {"cores_per_rank": 2}, "differ in cores per rank"),
        ({}, {"mesh": "dp2"}, "differ in mesh"),
        ({}, {"backend": "nccl"}, "differ in back end"),
        ({}, {"engine": "transformers"}, "differ in engine"),
        ({"oversubscribed": True}, {}, "differ in oversubscription: True and False"),
        ({}, {"hostname": "bench-2"}, "differ in host: bench-1 and bench-2 (--allow-other-host accepts it)"),
    ],
)
def test_what_cannot_be_compared_is_an_error(before, after, message, saved):
    result, verdicts = judged(
        saved, document(bench(throughputs=STEADY, **before)), document(bench(throughputs=STEADY, **after))
    )

    assert result.exit_code == 2
    assert message in next(iter(verdicts.values())).reason


def test_plain_benchmarks_prove_nothing(saved):
    plain = bench()
    plain["extra_info"] = {}

    assert judged(saved, document(plain), document(plain))[0].exit_code == 2


def test_missing_and_new_cases_are_errors_unless_allowed(saved):
    both, one = document(bench("a", STEADY), bench("b", STEADY, mesh="x")), document(bench("a", STEADY))

    result, verdicts = judged(saved, both, one)
    assert result.exit_code == 2
    assert "missing from the head run" in verdicts["test_generation[b]"].reason
    assert judged(saved, both, one, allow_removed=True)[0].exit_code == 0

    result, verdicts = judged(saved, one, both)
    assert result.exit_code == 2
    assert "nothing to compare with" in verdicts["test_generation[b]"].reason
    assert judged(saved, one, both, allow_new=True)[0].exit_code == 0


def test_a_renamed_case_is_recognised_and_not_passed(saved):
    result, verdicts = judged(saved, document(bench("old", STEADY)), document(bench("new", STEADY)))

    assert result.exit_code == 2
    assert "renamed to test_generation[new]" in verdicts["test_generation[old]"].reason


def test_a_case_that_failed_in_the_head_run_says_why(saved):
    head = document(
        bench("a", STEADY),
        gpt_parallel=not_run("b"),
    )

    result, verdicts = judged(saved, document(bench("a", STEADY), bench("b", STEADY)), head)

    assert result.exit_code == 2
    assert "failed in the head run: rank 1 was killed" in verdicts["test_generation[b]"].reason


@pytest.mark.parametrize("in_base", ["timed", "failed", "absent"])
def test_a_failed_case_is_never_a_pass(in_base, saved):
    """Whatever is allowed, and whether or not there is a timing to miss."""
    base = {
        "timed": document(bench("a", STEADY), bench("b", STEADY)),
        "failed": document(bench("a", STEADY), gpt_parallel=not_run("b")),
        "absent": document(bench("a", STEADY)),
    }[in_base]

    result, verdicts = judged(
        saved, base, document(bench("a", STEADY), gpt_parallel=not_run("b")), allow_removed=True, allow_new=True
    )

    assert result.exit_code == 2
    assert verdicts["test_generation[b]"].reason == "failed in the head run: rank 1 was killed"
    assert verdicts["test_generation[a]"].verdict == Verdict.PASS


def test_a_case_skipped_on_both_sides_is_nobodys_business(saved):
    run = document(bench("a", STEADY), gpt_parallel=not_run("b", "skipped", "needs 8 GPUs"))

    assert judged(saved, run, run)[0].exit_code == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verified": "skipped"}, "not verified"),
        ({"verified": "mismatch"}, "not verified"),
        ({"extra_info": {}}, "not a generation case"),
        ({"launches": [{"ttft_s": None}]}, "a launch has no valid ttft"),
    ],
)
def test_new_cases_are_allowed_only_if_they_prove_their_work(change, reason, saved):
    new = bench("new", STEADY, mesh="x")
    if "extra_info" in change:
        new["extra_info"] = {}
    elif "launches" in change:
        new["extra_info"]["launches"][1]["ttft_s"] = None
    else:
        new["extra_info"] |= change

    result, verdicts = judged(
        saved, document(bench("a", STEADY)), document(bench("a", STEADY), new), allow_new=True, metric="ttft"
    )

    assert result.exit_code == 2
    assert reason in verdicts["test_generation[new]"].reason


def test_a_gate_that_compared_nothing_is_no_pass(saved):
    base, head = document(bench("a", STEADY)), document(bench("b", STEADY, mesh="x"))

    result, verdicts = judged(saved, base, head, allow_new=True, allow_removed=True)

    assert result.exit_code == 2
    assert "nothing was compared" in verdicts["all cases"].reason


def test_another_host_is_compared_when_asked(saved):
    base, head = document(bench(throughputs=STEADY)), document(bench(throughputs=STEADY, hostname="bench-2"))

    assert judged(saved, base, head, allow_other_host=True)[0].exit_code == 0


def test_what_may_explain_a_change_is_told(saved):
    """Another torch or another way to run is perhaps what is being judged."""
    head = document(
        *(bench(name, STEADY, torch="2.14", linear="packed\x1b", attention="flash", decode="graphs") for name in "ab")
    )

    result, _ = judged(saved, document(bench("a", STEADY), bench("b", STEADY)), head)

    assert result.exit_code == 0
    assert result.notes == [
        "base and head differ in torch: 2.13.0+cpu and 2.14",
        "base and head differ in linear layers: None and packed\x1b",
        "base and head differ in attention: None and flash",
        "base and head differ in decoding: None and graphs",
    ]
    shown = to_text(result), to_github(result), to_junit(result)
    assert all("differ in torch: 2.13.0+cpu and 2.14" in text for text in shown)
    assert not any("\x1b" in text for text in shown)


def test_a_run_that_does_not_repeat_and_another_judge_are_told(saved):
    changing = {"verified": "tie", "repeatable": False, "attention_prefill": "cudnn", "attention_decode": "cudnn"}
    base = document(bench("a", STEADY, judge="transformers 5.24.0", attention_prefill="flash"))

    result, _ = judged(saved, base, document(bench("a", STEADY, judge="engine", **changing)))

    assert result.exit_code == 0
    assert result.notes == [
        "base and head differ in attention kernels of prefill: flash and cudnn",
        "base and head differ in judge: transformers 5.24.0 and engine",
        "head is not repeatable: timed rounds chose other tokens than the recorded pass, all right within rounding; "
        "cuDNN's attention does not repeat: --gpt-attention flash repeats",
    ]


@pytest.mark.parametrize("sides", [("full", "empty"), ("empty", "full"), ("empty", "empty")])
def test_a_run_without_cases_is_an_error(sides, saved):
    documents = {"full": document(bench(throughputs=STEADY)), "empty": document()}

    assert judged(saved, *(documents[side] for side in sides))[0].exit_code == 2


def test_a_launch_without_the_metric_is_an_error(saved):
    head = bench(throughputs=STEADY)
    head["extra_info"]["launches"][1]["ttft_s"] = None

    result, verdicts = judged(saved, document(bench(throughputs=STEADY)), document(head), metric="ttft")

    assert result.exit_code == 2
    assert "a launch has no valid ttft" in next(iter(verdicts.values())).reason


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_impossible_times_never_pass(value, save):
    """pytest-benchmark's own --benchmark-compare-fail lets these through."""
    broken = bench(throughputs=STEADY)
    broken["extra_info"]["launches"][0]["throughput_tok_s"] = value
    good, bad = save("good", document(bench(throughputs=STEADY))), save("bad", document(broken))

    assert run_gate(good, bad).exit_code == 2
    assert run_gate(bad, good).exit_code == 2


def test_the_worst_verdict_is_the_runs(saved):
    base = document(*(bench(name, STEADY) for name in "abcd"))
    head = document(bench("a", STEADY), bench("b", SLOWER), bench("c", NOISY))

    result, verdicts = judged(saved, base, head)
    assert result.exit_code == 2
    assert [entry.verdict.value for entry in verdicts.values()] == ["ERROR", "PASS", "FAIL", "INCONCLUSIVE"]
    assert judged(saved, base, head, allow_removed=True)[0].exit_code == 1


def test_text_has_a_line_a_case_and_the_sum(saved):
    base = document(bench("a", STEADY), bench("b", STEADY))

    result, _ = judged(saved, base, document(bench("a", STEADY), bench("b", SLOWER)))

    first, second, _, last = to_text(result).splitlines()
    assert first.startswith("FAIL          test_generation[b]  24.9% worse")
    assert second.startswith("PASS          test_generation[a]  0.0%")
    assert last == "FAIL: 1 PASS, 1 FAIL, 0 INCONCLUSIVE, 0 ERROR (throughput)"


def test_github_annotations_cannot_be_forged_by_a_case_name(saved):
    name = "x::error::y%0A,z\r\n::set-output name=a::b"

    result, _ = judged(saved, document(bench(name, STEADY)), document(bench(name, SLOWER)))

    lines = to_github(result).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error title=FAIL test_generation[x%3A%3Aerror%3A%3Ay%250A%2Cz")
    assert lines[1].startswith("::notice title=benchmark gate::FAIL")


def test_junit_counts_and_names_what_failed(saved):
    base = document(bench("a", STEADY), bench("b", STEADY), bench("<c>\x1b", STEADY))

    result, _ = judged(saved, base, document(bench("a", STEADY), bench("b", SLOWER)))

    suite = ElementTree.fromstring(to_junit(result)).find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    kinds = {case.get("name"): [child.tag for child in case] for case in suite}
    assert kinds["test_generation[a]"] == []
    assert kinds["test_generation[b]"] == ["failure"]
    assert kinds["test_generation[<c>\N{REPLACEMENT CHARACTER}]"] == ["error"]


def test_command_prints_verdicts_and_writes_junit(save, tmp_path):
    base, head = save("base", document(bench(throughputs=STEADY))), save("head", document(bench(throughputs=SLOWER)))

    done = run_gate(base, head, "--junit", tmp_path / "gate.xml", "--case", "*1gpu*=10%")

    assert done.exit_code == 1
    assert "worse by more than 10.0%" in done.output
    assert "FAIL" in (tmp_path / "gate.xml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "speed"), "allowed are throughput, ttft, tpot, memory"),
        (("--threshold", "fast"), "must be a percentage such as 5%"),
        (("--threshold", "-5%"), "must be a percentage such as 5%"),
        (("--threshold", "nan"), "must be a percentage such as 5%"),
        *((("--threshold", bare), "must be a percentage such as 5%") for bare in ("5", "3", "1")),
        (("--case", "*=5"), "--case '5': must be a percentage such as 5%"),
        (("--case", "8gpu=10%"), "--case '8gpu' matches no case"),
        (("--case", "4gpu"), "must look like PATTERN=10%"),
        (("--format", "xml"), "allowed are text, github"),
        (("--junit", "absent/gate.xml"), "cannot be written"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message, save, monkeypatch, tmp_path):
    (tmp_path / "absent").write_text("a file")
    monkeypatch.chdir(tmp_path)
    path = save("run", document(bench(throughputs=STEADY)))

    done = run_gate(path, path, *arguments)

    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_truncated_files_are_unusable_data(save, tmp_path):
    good = save("good", document(bench(throughputs=STEADY)))
    (tmp_path / "cut.json").write_text(json.dumps(document(bench()))[:200])

    done = run_gate(good, tmp_path / "cut.json")

    assert done.exit_code == 2
    assert "cut.json: not valid JSON" in done.stderr


def deviating(count, deviation, slowdown=1.0):
    """Throughputs whose logarithms have exactly this standard deviation."""
    steps = [index - (count - 1) / 2 for index in range(count)]
    scale = deviation / stdev(steps)
    return tuple(100 / slowdown * math.exp(step * scale) for step in steps)


def steady_but(saved, slowed, **rules):
    """Nine cases, each of as many launches; the first is slowed. Its verdict."""
    steady = deviating(len(slowed), 0.001)
    others = [bench(f"case-{index}", steady) for index in range(1, 9)]
    base = document(bench("slowed", deviating(len(slowed), 0.03)), *others)
    _, verdicts = judged(saved, base, document(bench("slowed", slowed), *others), **rules)
    return verdicts["test_generation[slowed]"]


def test_nine_cases_are_nine_chances_to_err(saved):
    """p = 0.03 alone would do; one of nine looks like that without any slowdown in a quarter of all runs."""
    slowed = deviating(6, 0.03, 1.04)
    alone, _ = judged(
        saved, document(bench(throughputs=deviating(6, 0.03))), document(bench(throughputs=slowed)), threshold=0.03
    )

    entry = steady_but(saved, slowed, threshold=0.03)

    assert alone.verdicts[0].verdict == Verdict.FAIL
    assert 0.02 < alone.verdicts[0].p_value < 0.04
    assert entry.verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("slowdown", "verdict"), [(1.055, Verdict.FAIL), (1.02, Verdict.PASS)])
def test_the_number_of_launches_that_would_tell_does_tell(slowdown, verdict, saved):
    first = steady_but(saved, deviating(6, 0.06, slowdown))
    needed = int(first.reason.split("about ")[1].split()[0])

    assert first.verdict == Verdict.INCONCLUSIVE
    assert needed < 100
    assert steady_but(saved, deviating(needed, 0.06, slowdown)).verdict == verdict


NONSENSE = {
    "tiny throughput": {"throughput_tok_s": 1e-300},
    "huge throughput": {"throughput_tok_s": 1e300},
    "huge launch": {"launches": [{"throughput_tok_s": 1e300}]},
    "tiny launch": {"launches": [{"throughput_tok_s": 1e-300}]},
    "huge memory": {"launches": [{"peak_memory_bytes": 10**400}]},
    "huge peak": {"max_peak_memory_bytes": 10**400},
    "huge peak of a rank": {"peak_memory_bytes_by_rank": [10**400]},
    "huge tokens": {"output_tokens": 10**400},
    "huge devices": {"num_gpus": 10**400},
    "no launch": {"launches": []},
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("command", ["gate", "report"])
def test_nonsense_is_unusable_data(command, change, save, tmp_path):
    broken = bench(throughputs=STEADY)
    launches = [
        launch | changed
        for launch, changed in zip(broken["extra_info"]["launches"], change.get("launches", []), strict=False)
    ]
    broken["extra_info"] |= change | ({"launches": launches} if "launches" in change else {})
    paths = save("good", document(bench(throughputs=STEADY))), save("bad", document(broken))

    extra = ["--output-dir", str(tmp_path)] if command == "report" else ["--metric", "memory"]
    done = CliRunner().invoke(app, [command, *map(str, paths), *extra])

    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {paths[1]}: benchmarks test_generation")


def test_figures_at_the_edge_of_what_is_read_are_judged(save, tmp_path):
    """Nothing overflows between the smallest and the largest that is accepted."""
    paths = []
    for side, throughputs in (("base", (1e-12, 1e15)), ("head", (1e15, 1e-12, 1e15))):
        entry = bench(throughputs=STEADY[: len(throughputs)])
        for launch, throughput in zip(entry["extra_info"]["launches"], throughputs, strict=True):
            launch["throughput_tok_s"] = throughput
        paths.append(save(side, document(entry)))

    assert run_gate(*paths).exit_code == 3
    assert CliRunner().invoke(app, ["report", *map(str, paths), "--output-dir", str(tmp_path)]).exit_code == 0


def test_names_that_no_file_can_hold_are_replaced(save, tmp_path):
    name = "\ud800\uffff\ufffe"
    base, head = (save(side, document(bench(name, STEADY))) for side in ("base", "head"))

    done = run_gate(base, head, "--junit", tmp_path / "gate.xml", "--format", "github")
    report = CliRunner().invoke(app, ["report", str(base), str(head), "--output-dir", str(tmp_path / "report")])

    assert (done.exit_code, report.exit_code) == (0, 0)
    case = ElementTree.parse(tmp_path / "gate.xml").getroot().find("testsuite/testcase")
    assert (
        case.get("name")
        == "test_generation[\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}]"
    )


def test_an_unforeseen_error_is_not_taken_for_a_regression(save, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by nothing\nat all")

    monkeypatch.setattr("gpt_parallel.report.compare.gate.decide", broken)
    path = save("run", document(bench(throughputs=STEADY)))

    done = run_gate(path, path)

    assert done.exit_code == 2
    assert done.stderr == "error: unexpected ZeroDivisionError: by nothing at all\n"


def test_messages_carry_no_escape_sequences(save):
    broken = bench("\x1b[31m", STEADY)
    broken["stats"]["median"] = -1
    path = save("run", document(broken))

    done = run_gate(path, path)

    assert done.exit_code == 2
    assert "\N{REPLACEMENT CHARACTER}[31m" in done.stderr
    assert "\x1b" not in done.stderr


def test_unusable_input_is_said_wherever_the_verdict_would_have_stood(save, tmp_path):
    """An older JUnit file left in place would be read as this run's."""
    (tmp_path / "gate.xml").write_text("<testsuites/>")
    good = save("good", document(bench(throughputs=STEADY)))

    done = run_gate(good, tmp_path / "absent.json", "--format", "github", "--junit", tmp_path / "gate.xml")

    assert done.exit_code == 2
    assert done.stdout.startswith("::error title=ERROR all cases::")
    assert "absent.json: cannot be read" in done.stdout
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
