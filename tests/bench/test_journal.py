"""The matrix's journal: what survives what."""

import json
import os

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.journal import Finished, Header, Journal, JournalError
from tests.support.factories import run_result, run_spec, summary

HEADER = Header(settings={"model": "gpt2-nano", "seed": 0}, machine={"hostname": "here"})
PASSED = Finished(cell="a", outcome="passed", seconds=1.5, summary=summary())
FAILED = Finished(cell="b", outcome="failed", reason="rank 1 failed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "matrix.jsonl"


def open_journal(path, header=HEADER, resume=False, force=False):
    return Journal(path, header, resume=resume, force=force)


def interrupted(path, *cells):
    with open_journal(path) as journal:
        for cell in cells:
            journal.add(cell)


def test_what_was_added_is_found_again(path):
    interrupted(path, PASSED, FAILED)

    with open_journal(path, resume=True) as journal:
        assert journal.finished == {"a": PASSED, "b": FAILED}


def test_each_cell_is_on_disk_before_the_next(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append(path.read_bytes().count(b"\n"))))

    with open_journal(path) as journal:
        journal.add(PASSED)
        journal.add(FAILED)

    assert synced == [1, 1, 2, 3], "the header, its file's name, and the cells"


@pytest.mark.parametrize("num_bytes", [1, 10, 100])
def test_a_line_that_was_cut_off_is_dropped(path, num_bytes):
    interrupted(path, PASSED, FAILED)
    path.write_bytes(path.read_bytes()[:-num_bytes])

    with open_journal(path, resume=True) as journal:
        assert list(journal.finished) == ["a"]
        journal.add(FAILED)

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("cell") for line in lines] == [None, "a", "b"]


def test_a_later_line_of_a_cell_counts(path):
    interrupted(path, FAILED, PASSED)
    with open_journal(path, resume=True) as journal:
        journal.forget("failed")
        assert list(journal.finished) == ["a"]
        journal.add(Finished(cell="b", outcome="skipped", reason="no GPU"))

    with open_journal(path, resume=True) as journal:
        assert journal.finished["b"].outcome == "skipped"


def test_an_unfinished_journal_can_be_put_aside(path):
    interrupted(path, FAILED, PASSED, PASSED)
    before, aside = path.read_bytes(), path.with_name("aside.x")

    with Journal(path, HEADER, resume=False, keep_as=aside) as journal:
        assert (journal.kept, journal.num_kept, journal.finished) == (aside, 2, {})
        assert aside.read_bytes() == before
    with Journal(path, HEADER, resume=False, keep_as=aside) as journal:
        assert journal.num_kept == 0, "nothing was finished in it"
        journal.add(PASSED)
        journal.end()
    with Journal(path, HEADER, resume=False, keep_as=aside) as journal:
        assert journal.num_kept == 0, "it had its end"
    assert aside.read_bytes() == before


def test_what_was_put_aside_stays_when_the_next_session_does_not_end_either(path, tmp_path):
    aside, kept = tmp_path / "previous.jsonl", []
    (tmp_path / "previous-2.jsonl").symlink_to(tmp_path / "nowhere")
    for cell in (PASSED, FAILED, PASSED):
        with Journal(path, HEADER, resume=False, keep_as=aside) as journal:
            kept.append((journal.kept.name, journal.num_kept))
            journal.add(cell)

    assert kept == [("matrix.jsonl", 0), ("previous.jsonl", 1), ("previous-3.jsonl", 1)]
    assert b'"cell": "a"' in aside.read_bytes()
    assert b'"cell": "b"' in (tmp_path / "previous-3.jsonl").read_bytes()


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.rename(path.with_name("other"))])
def test_a_journal_that_nobody_would_find_is_not_written_any_more(path, change):
    with open_journal(path) as journal:
        change(path)
        with pytest.raises(JournalError, match="cannot be written any more \\(No such file"):
            journal.add(PASSED)


def test_a_journal_that_was_replaced_is_not_written_any_more(path):
    with open_journal(path) as journal:
        path.unlink()
        path.write_text("somebody else's")
        with pytest.raises(JournalError, match="it was replaced by another file"):
            journal.add(PASSED)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SpecError, match="not a regular file"):
        open_journal(tmp_path / "pipe", resume=True)
    with pytest.raises(SpecError, match="cannot be written"):
        open_journal(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_launches_come_back_as_they_were(path):
    result = run_result(run_spec())
    interrupted(path, Finished(cell="c", outcome="passed", results=(result, result)))

    with open_journal(path, resume=True) as journal:
        assert journal.finished["c"].results == (result, result)


def test_secrets_do_not_reach_the_journal(path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    interrupted(path, FAILED.model_copy(update={"reason": "refused correct-horse-battery"}))

    assert "correct-horse" not in path.read_text()


def test_an_interrupted_matrix_is_not_thrown_away(path):
    interrupted(path, PASSED)
    before = path.read_bytes()

    with pytest.raises(
        SpecError, match=r"of an interrupted matrix \(finished cells: 1\); go on with --resume, or start over"
    ):
        open_journal(path)

    assert path.read_bytes() == before
    with open_journal(path, force=True) as journal:
        assert journal.finished == {}


def test_a_finished_matrix_may_be_run_again(path):
    with open_journal(path) as journal:
        journal.add(PASSED)
        journal.end()

    with open_journal(path) as journal:
        assert journal.finished == {}


def test_resuming_nothing_starts(path):
    with open_journal(path, resume=True) as journal:
        assert journal.finished == {}

    assert json.loads(path.read_text())["kind"] == "matrix"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.model_copy(update={"settings": {"model": "gpt2-nano", "seed": 1}}), "seed was 0 and is 1"),
        (HEADER.model_copy(update={"machine": {"hostname": "there"}}), "hostname was 'here' and is 'there'"),
        (HEADER.model_copy(update={"settings": {"model": "gpt2-nano"}}), "seed was 0 and is None"),
    ],
)
def test_runs_that_do_not_belong_in_one_table_are_kept_apart(path, header, message):
    interrupted(path, PASSED)

    with pytest.raises(SpecError, match=message):
        open_journal(path, header, resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "matrix"}\n', "settings: Field required"),
        ('{"kind": "other"}\n', "is not a matrix journal"),
        ("[1]\n", ":1: not an object"),
        ("nonsense\n", ":1: not valid JSON"),
        (HEADER.model_dump_json() + '\n{"kind": "cell", "cell": "a", "outcome": "great"}\n', "outcome = 'great'"),
    ],
)
def test_files_that_cannot_be_resumed(path, content, message):
    path.write_text(content)

    with pytest.raises(SpecError, match=message):
        open_journal(path, resume=True)

    assert path.read_text() == content
    with open_journal(path, force=True):
        pass


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"somebody's notes, in one line", "is not a matrix journal"),
        (b'{"kind": "other"}\n{"kind": "ce', "is not a matrix journal"),
        (b'{"kind": "matrix"}\n{"a": 1, "a": 2}\n{"kind": "ce', ":2: .*key 'a' is there twice"),
        (b'{"kind": "matrix"}\n' + b"[" * 2000 + b"]" * 2000 + b"\n", ":2: nested deeper"),
    ],
)
def test_a_file_that_is_refused_is_left_as_it_is_to_the_last_byte(path, content, message, resume):
    path.write_bytes(content)

    with pytest.raises(SpecError, match=message):
        open_journal(path, resume=resume)

    assert path.read_bytes() == content


def test_a_journal_of_other_runs_keeps_its_line_that_was_cut_off(path):
    interrupted(path, PASSED, FAILED)
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()

    with pytest.raises(SpecError, match="seed was 0 and is 1"):
        open_journal(path, HEADER.model_copy(update={"settings": {"model": "gpt2-nano", "seed": 1}}), resume=True)

    assert path.read_bytes() == before


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("num_bytes", [0, 5, 60])
def test_a_header_that_was_cut_off_is_written_anew(path, num_bytes, resume):
    with open_journal(path, HEADER.model_copy(update={"settings": {"model": "gpt2-xl"}})):
        pass
    path.write_bytes(path.read_bytes()[:num_bytes])

    with open_journal(path, resume=resume) as journal:
        assert journal.finished == {}

    assert json.loads(path.read_text()) == HEADER.model_dump(mode="json")


def test_a_file_that_is_too_large_for_a_journal_is_not_read(path, monkeypatch):
    monkeypatch.setattr("gpt_parallel.bench.journal.MAX_BYTES", 100)
    path.write_bytes(b"x" * 101)

    with pytest.raises(SpecError, match="larger than 100 bytes, the most that is read; --force starts over"):
        open_journal(path, resume=True)

    assert path.stat().st_size == 101


def test_two_writers_at_once_are_refused(path):
    with open_journal(path), pytest.raises(SpecError, match="another matrix is writing it"):
        open_journal(path, force=True)


def test_a_journal_that_cannot_be_written(tmp_path):
    with pytest.raises(SpecError, match="cannot be written"):
        open_journal(tmp_path)


def test_a_full_disk_keeps_what_was_there(path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    with open_journal(path) as journal:
        journal.add(PASSED)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="cannot be written any more \\(No space left on device\\)"):
            journal.add(FAILED)
        assert list(journal.finished) == ["a", "b"], "what was measured is still at hand"
    before = path.read_bytes()
    monkeypatch.undo()
    with open_journal(path, resume=True) as journal:
        assert list(journal.finished) == ["a"]
        journal.add(FAILED)
    assert path.read_bytes().startswith(before), "half a line is no line"
