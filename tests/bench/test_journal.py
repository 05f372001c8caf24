"""A session's journal: what survives what."""

import json
import os

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.journal import Finished, Header, Journal, JournalError, make_header
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.schema.model import ModelSpec
from tests.support.factories import run_result, run_spec

HEADER = Header(settings={"model": "gpt2-nano", "seed": 0}, machine={"hostname": "here"})
PASSED = Finished(case="a", outcome="passed")
FAILED = Finished(case="b", outcome="failed", reason="rank 1 failed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


def smoke(**given):
    return make_settings("smoke", {"device": "cpu", "num_gpus": "1,2", **given})


def open_journal(path, header=HEADER, resume=False):
    return Journal(path, header, resume=resume, keep_as=path.with_name("previous.jsonl"))


def interrupted(path, *cases):
    with open_journal(path) as journal:
        for case in cases:
            journal.add(case)


def test_what_was_added_is_found_again(path):
    interrupted(path, PASSED, FAILED)

    with open_journal(path, resume=True) as journal:
        assert journal.finished == {"a": PASSED, "b": FAILED}


def test_each_case_is_on_disk_before_the_next(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append(path.read_bytes().count(b"\n"))))

    with open_journal(path) as journal:
        journal.add(PASSED)
        journal.add(FAILED)

    assert synced == [1, 1, 2, 3], "the header, its file's name, and the cases"


@pytest.mark.parametrize("num_bytes", [1, 10, 60])
def test_a_line_that_was_cut_off_is_dropped(path, num_bytes):
    interrupted(path, PASSED, FAILED)
    path.write_bytes(path.read_bytes()[:-num_bytes])

    with open_journal(path, resume=True) as journal:
        assert list(journal.finished) == ["a"]
        journal.add(FAILED)

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("case") for line in lines] == [None, "a", "b"]


def test_a_later_line_of_a_case_counts(path):
    interrupted(path, FAILED, PASSED)
    with open_journal(path, resume=True) as journal:
        journal.forget_failures()
        assert list(journal.finished) == ["a"]
        journal.add(Finished(case="b", outcome="passed"))

    with open_journal(path, resume=True) as journal:
        assert journal.finished["b"].outcome == "passed"


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
    for case in (PASSED, FAILED, PASSED):
        with Journal(path, HEADER, resume=False, keep_as=aside) as journal:
            kept.append((journal.kept.name, journal.num_kept))
            journal.add(case)

    assert kept == [("session.jsonl", 0), ("previous.jsonl", 1), ("previous-3.jsonl", 1)]
    assert b'"case": "a"' in aside.read_bytes()
    assert b'"case": "b"' in (tmp_path / "previous-3.jsonl").read_bytes()


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.rename(path.with_name("other"))])
def test_a_journal_that_nobody_would_find_is_not_written_any_more(path, change):
    with open_journal(path) as journal:
        change(path)
        with pytest.raises(JournalError, match="can no longer be written \\(No such file"):
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
    interrupted(path, Finished(case="c", outcome="passed", results=(result, result)))

    with open_journal(path, resume=True) as journal:
        assert journal.finished["c"].results == (result, result)


def test_secrets_do_not_reach_the_journal(path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    interrupted(path, FAILED.model_copy(update={"reason": "refused correct-horse-battery"}))

    assert "correct-horse" not in path.read_text()


def test_a_finished_session_may_be_run_again(path):
    with open_journal(path) as journal:
        journal.add(PASSED)
        journal.end()

    with open_journal(path) as journal:
        assert journal.finished == {}


def test_resuming_nothing_starts(path):
    with open_journal(path, resume=True) as journal:
        assert journal.finished == {}

    assert json.loads(path.read_text())["kind"] == "session"


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
        ('{"kind": "session"}\n', "settings: is missing"),
        ('{"kind": "other"}\n', "is not a session journal"),
        ("[1]\n", ":1: not an object"),
        ("nonsense\n", ":1: not valid JSON"),
        (HEADER.model_dump_json() + '\n{"kind": "case", "case": "a", "outcome": "great"}\n', "outcome = 'great'"),
    ],
)
def test_files_that_cannot_be_resumed(path, content, message):
    path.write_text(content)

    with pytest.raises(SpecError, match=message):
        open_journal(path, resume=True)

    assert path.read_text() == content


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"somebody's notes, in one line", "is not a session journal"),
        (b'{"kind": "other"}\n{"kind": "ce', "is not a session journal"),
        (b'{"kind": "session"}\n{"a": 1, "a": 2}\n{"kind": "ce', ":2: .*duplicate key 'a'"),
        (b'{"kind": "session"}\n' + b"[" * 2000 + b"]" * 2000 + b"\n", ":2: nested deeper"),
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

    with pytest.raises(SpecError, match="larger than 100 bytes, the most allowed; move it away, or"):
        open_journal(path, resume=True)

    assert path.stat().st_size == 101


def test_two_writers_at_once_are_refused(path):
    with open_journal(path), pytest.raises(SpecError, match="another pytest session is writing it"):
        open_journal(path)


def test_a_journal_that_cannot_be_written(tmp_path):
    with pytest.raises(SpecError, match="cannot be written"):
        open_journal(tmp_path)


def test_a_full_disk_keeps_what_was_there(path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    with open_journal(path) as journal:
        journal.add(PASSED)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="can no longer be written \\(No space left on device\\)"):
            journal.add(FAILED)
        assert list(journal.finished) == ["a", "b"], "what was measured is still at hand"
    before = path.read_bytes()
    monkeypatch.undo()
    with open_journal(path, resume=True) as journal:
        assert list(journal.finished) == ["a"]
        journal.add(FAILED)
    assert path.read_bytes().startswith(before), "half a line is no line"


def test_a_prompts_file_that_changed_is_other_work(tmp_path):
    prompts = tmp_path / "p.jsonl"
    headers = []
    for text in ("one", "two"):
        prompts.write_text(json.dumps({"prompt": text}))
        headers.append(make_header(smoke(prompts=str(prompts))).settings)

    assert headers[0] != headers[1]
    with pytest.raises(SpecError, match=r"absent.jsonl: cannot be read"):
        make_header(smoke(prompts="absent.jsonl"))


@pytest.mark.timeout(20)
def test_a_prompts_file_that_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")

    with pytest.raises(SpecError, match=r"p.jsonl: cannot be read \(is a named pipe"):
        make_header(smoke(prompts=str(tmp_path / "p.jsonl")))


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
    before = make_header(smoke()).settings
    os.utime(tmp_path / "b.safetensors", ns=(1, 2))
    os.utime(tmp_path / "README.md", ns=(1, 2))
    after = make_header(smoke()).settings

    assert {name for name in before if name.startswith("file ")} == {
        *("file a.safetensors", "file b.safetensors", "file config.json")
    }
    assert before["file a.safetensors"] == "1 bytes of 1"
    assert [name for name in after if before[name] != after[name]] == ["file b.safetensors"]


def test_a_model_that_cannot_be_had_is_left_to_the_run_to_refuse():
    assert make_header(smoke(model="nosuch")).settings["model"] == "nosuch"


def test_a_variable_that_changes_figures_makes_other_runs(monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    before = make_header(smoke()).machine
    monkeypatch.setenv("OMP_PROC_BIND", "close")

    assert make_header(smoke()).machine == {**before, "OMP_PROC_BIND": "close"}


def test_a_finished_journal_of_other_settings_starts_over(path):
    interrupted(path, PASSED)
    with open_journal(path, resume=True) as journal:
        journal.end()
    other = HEADER.model_copy(update={"settings": {"model": "gpt2-nano", "seed": 1}})

    with open_journal(path, other, resume=True) as journal:
        assert journal.has_nothing_to_resume
        assert journal.finished == {}
        assert journal.num_kept == 0
    with open_journal(path, other, resume=True) as journal:
        assert not journal.has_nothing_to_resume
