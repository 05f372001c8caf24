import json
import subprocess

import pytest

from gpt_parallel.bench import environment
from gpt_parallel.bench.session_record import FILE_NAME, SessionRecord
from gpt_parallel.report import render
from gpt_parallel.report.compare.gate import decide
from gpt_parallel.report.compare.verdicts import Rules, Verdict
from gpt_parallel.report.saved_run import ReportError, load_run
from tests.support.factories import bench, document, summary


@pytest.fixture
def record(monkeypatch):
    """Its reports are without charts, which take long and have tests of their own."""
    monkeypatch.setattr(render, "draw_charts", lambda *_: [])
    record = SessionRecord()
    record.add("benchmarks/t.py::t[a]", "t[a]", "generation", {}, summary())
    return record


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Has the package run from a repository's branch `feature/x`."""
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "feature/x", tmp_path], check=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "bench" / "environment.py"))


@pytest.mark.usefixtures("checkout")
def test_the_report_knows_the_branch(record, tmp_path):
    record.write_report(tmp_path / "report")

    assert load_run(tmp_path / "report" / FILE_NAME).branch == "feature/x"
    assert "commit 0123456789ab on feature/x" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.usefixtures("checkout")
def test_an_installed_copy_has_neither_commit_nor_branch():
    record = SessionRecord()
    record.add("t.py::t", "t", None, {}, summary(git_commit=None, git_dirty=None))

    assert record.document()["commit_info"] == {"id": None, "branch": None, "dirty": None}


def git(directory, *arguments):
    names = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", directory, *names, *arguments], check=True, capture_output=True, timeout=20)


@pytest.mark.usefixtures("checkout")
def test_the_code_is_known_by_commit_and_what_differs_from_it(tmp_path):
    found = [environment.describe_machine()["code"]]
    source = tmp_path / "__init__.py"
    for text in ("one", "two"):
        source.write_text(text)
        found.append(environment.describe_machine()["code"])
    git(tmp_path, "add", "__init__.py")
    git(tmp_path, "commit", "-m", "x")
    for text in ("two", "three", "four"):
        environment._git_state.cache_clear()  # of one process, which imports its code once
        source.write_text(text)
        found.append(environment.describe_machine()["code"])

    assert len(set(found)) == 6
    commit = found[3].removeprefix("commit ")
    assert len(commit) == 40
    assert [text.split()[0] for text in found[:3]] == ["files"] * 3, "as an installed copy"
    assert all(text.startswith(f"commit {commit} with changes ") for text in found[4:])


REPORTS = ("report.md", "report.html", "performance_report.txt")


def test_a_session_that_ended_early_says_so_in_every_report(record, tmp_path):
    record.add_not_run("f::t[b]", "t[b]", "skipped", "needs 8 GPUs")
    record.add_not_reached("f::t[c]", "t[c]", "stopped after <2> failures")
    record.add_not_reached("f::t[d]", "t[d]", "stopped after <2> failures")

    record.write_report(tmp_path)

    sentence = "INCOMPLETE: stopped after <2> failures; 2 of 4 cases were not reached."
    assert record.incompleteness == load_run(tmp_path / FILE_NAME).incompleteness == sentence
    for name in REPORTS:
        shown = sentence if name.endswith("txt") else sentence.replace("<", "&lt;").replace(">", "&gt;")
        assert shown in (tmp_path / name).read_text()
    assert "Not reached: t[c] (stopped" in (tmp_path / "performance_report.txt").read_text()


def test_a_report_that_cannot_be_written_leaves_older_figures_beside_the_older_report(record, tmp_path, monkeypatch):
    def full(template, context):
        raise OSError(28, "No space left on device")

    (tmp_path / FILE_NAME).write_text("older")
    monkeypatch.setattr(render, "_render", full)
    with pytest.raises(ReportError, match="cannot be written"):
        record.write_report(tmp_path)

    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {FILE_NAME}
    assert (tmp_path / FILE_NAME).read_text() == "older"


def test_a_whole_session_is_not_called_incomplete(record, tmp_path):
    record.add_not_run("f::t[b]", "t[b]", "failed", "rank 1 was killed")

    record.write_report(tmp_path)

    assert record.incompleteness is None
    assert record.document()["gpt_parallel"].keys() == {"not_run"}
    assert not any("INCOMPLETE" in (tmp_path / name).read_text() for name in REPORTS)


def test_a_mark_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(document(bench(), gpt_parallel={"incomplete": ["x"]})))

    with pytest.raises(ReportError, match=r"run\.json: gpt_parallel\.incomplete must be a text"):
        load_run(tmp_path / "run.json")


STEADY = (100.0, 101.0, 99.5, 100.5)
UNREACHED = {
    "incomplete": "interrupted",
    "not_run": [{"case": "test_generation[b]", "outcome": "not reached", "reason": "interrupted"}],
}
WHOLE, PART = document(bench("a", STEADY), bench("b", STEADY)), document(bench("a", STEADY), gpt_parallel=UNREACHED)


@pytest.mark.parametrize(("base", "head"), [(WHOLE, PART), (PART, WHOLE), (PART, PART)])
def test_a_case_that_was_not_reached_is_never_a_pass(base, head, tmp_path):
    """Whatever is allowed, and whichever side ended early."""
    (tmp_path / "base.json").write_text(json.dumps(base))
    (tmp_path / "head.json").write_text(json.dumps(head))

    result = decide(
        load_run(tmp_path / "base.json"), load_run(tmp_path / "head.json"), Rules(allow_new=True, allow_removed=True)
    )

    verdicts = {entry.case: entry for entry in result.verdicts}
    assert verdicts["test_generation[a]"].verdict == Verdict.PASS
    assert verdicts["test_generation[b]"].verdict == Verdict.ERROR
    assert "not reached (interrupted)" in verdicts["test_generation[b]"].reason
    assert result.exit_code == 2


def test_a_run_that_is_marked_and_does_not_say_what_is_missing_is_no_pass(tmp_path):
    whole = document(bench("a", STEADY))
    (tmp_path / "base.json").write_text(json.dumps(whole))
    (tmp_path / "head.json").write_text(json.dumps({**whole, "gpt_parallel": {"incomplete": "interrupted"}}))

    assert decide(load_run(tmp_path / "base.json"), load_run(tmp_path / "head.json"), Rules()).exit_code == 2
