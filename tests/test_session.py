import subprocess

import pytest

from gpt_parallel import environment
from gpt_parallel.report.load import load_run
from gpt_parallel.session import FILE_NAME, SessionRecord
from tests.factories import summary


@pytest.fixture
def record():
    record = SessionRecord()
    record.add("benchmarks/t.py::t[a]", "t[a]", "generation", {}, summary())
    return record


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Has the package run from a repository's branch `feature/x`."""
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "feature/x", tmp_path], check=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))


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
