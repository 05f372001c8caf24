"""Files that are written whole, alone and together."""

import os

import pytest

from gpt_parallel.base.atomic_files import StagedFiles, write_atomically


def test_a_text_may_come_in_pieces(tmp_path):
    write_atomically(tmp_path / "deep" / "a", (piece for piece in ("one\n", "zwei ü\n")))

    assert (tmp_path / "deep" / "a").read_text(encoding="utf-8") == "one\nzwei ü\n"


def test_files_change_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "stale").write_text("old")

    with pytest.raises(OSError, match="no room"), StagedFiles() as files:  # noqa: PT012
        files.remove(tmp_path / "stale")
        files.write(tmp_path / "a", "new")
        files.write(tmp_path / "b", b"new")
        raise OSError("no room")

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "stale": "old"}

    with StagedFiles() as files:
        files.remove(tmp_path / "stale")
        files.remove(tmp_path / "a")
        files.write(tmp_path / "a", "new")
        assert (tmp_path / "a").read_text() == "old"

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    """Nor is a device, which somebody may name as root: `--junit /dev/null`."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="a device or a pipe, not a file"):
        write_atomically(tmp_path / "pipe", "new")

    assert (tmp_path / "pipe").is_fifo()
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "a").mkdir()

    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "a", b"new")

    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "result.json", "text")
    finally:
        os.umask(before)

    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o640
