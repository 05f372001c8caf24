"""A gate passes only what it has reason to pass."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from gpt_parallel.cli import app
from gpt_parallel.report.gate import METRICS, Rules, Verdict, decide
from gpt_parallel.report.gate_output import to_github, to_junit, to_text
from tests.factories import bench, document

STEADY = (100.0, 101.0, 99.5, 100.5)
SLOWER = (80.0, 81.0, 79.5, 80.5)
NOISY = (60.0, 100.0, 140.0)


def judged(saved, base, head, **rules):
    """The verdicts of two documents, by case."""
    result = decide(saved("base", base), saved("head", head), Rules(**rules))
    return result, {entry.case: entry for entry in result.verdicts}


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
        gpt_parallel={"not_run": [{"case": "test_generation[b]", "outcome": "failed", "reason": "rank 1 was killed"}]},
    )

    result, verdicts = judged(saved, document(bench("a", STEADY), bench("b", STEADY)), head)

    assert result.exit_code == 2
    assert "failed in the head run: rank 1 was killed" in verdicts["test_generation[b]"].reason


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
