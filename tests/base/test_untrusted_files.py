"""Every reader of files refuses what is no file, never ends, or has two meanings."""

import json
import os
import socket
from pathlib import Path

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import MAX_DEPTH, parse_json, read_whole
from gpt_parallel.bench.result_file import load_result
from gpt_parallel.inputs.checkpoint import read_architecture
from gpt_parallel.inputs.prompt_files.read import read_prompts
from gpt_parallel.inputs.yaml_file import read_config
from gpt_parallel.report.saved_run import load_run


def config_json(path):
    """Reads a file as a model's config.json."""
    directory = path.parent / "model"
    directory.mkdir()
    (directory / "config.json").symlink_to(path)
    return read_architecture(directory)


@pytest.fixture(params=[load_result, load_run, read_prompts, read_config, config_json], ids=lambda f: f.__name__)
def refusal(request):
    """What a reader says of a file it refuses."""

    def refusal(path):
        with pytest.raises(SpecError) as failure:
            request.param(path)
        return str(failure.value)

    return refusal


def test_a_named_pipe_is_not_waited_for(refusal, tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert "cannot be read (is a named pipe, not a regular file)" in refusal(tmp_path / "pipe")


def test_what_is_no_file_is_named(refusal, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert "cannot be read (Too many levels of symbolic links)" in refusal(tmp_path / "loop")


def test_a_device_that_never_ends_is_refused(refusal, tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")

    assert "cannot be read (is a device, not a regular file)" in refusal(tmp_path / "zero")


def test_a_file_that_is_too_large_is_refused(refusal, tmp_path):
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 1 << 40)

    assert "large: larger than " in refusal(path).replace("config.json", "large")


def test_an_empty_file_is_refused(refusal, tmp_path):
    (tmp_path / "empty").touch()

    assert str(tmp_path) in refusal(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_names_that_no_file_has(name, tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        read_whole(tmp_path / name, 10, "file")


def test_directories_and_sockets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="cannot be read \\(Is a directory\\)"):
        read_whole(tmp_path, 10, "file")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        with pytest.raises(SpecError, match="cannot be read"):
            read_whole(Path("s"), 10, "file")


def test_a_file_of_the_allowed_size_is_read_whole(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 10)

    assert read_whole(tmp_path / "f", 10, "note") == b"x" * 10
    with pytest.raises(SpecError, match=r"note .*: larger than 9 bytes, the most allowed"):
        read_whole(tmp_path / "f", 9, "note")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not valid JSON, perhaps truncated"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'"\xff"', "not valid UTF-8 at byte 2"),
        ('{"a": 1}'.encode("utf-16"), "not valid UTF-8 at byte 1"),
        (b"9" * 5000, "not valid JSON"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
    ],
)
def test_json_has_one_meaning(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_json(raw)


def test_json_as_it_should_be():
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    assert json.dumps(parse_json(deepest)).encode() == deepest
    assert parse_json(b'{"a": [1e3, "\\ud800", null]}') == {"a": [1e3, "\ud800", None]}
    assert parse_json(b"[NaN]", allow_nan=True) != [0.0]


def test_a_million_keys_with_one_twice_are_looked_at_once():
    names = [f'"{index}": 0' for index in range(200_000)]

    with pytest.raises(ValueError, match="duplicate key '199999'"):
        parse_json(f"{{{', '.join([*names, names[-1]])}}}".encode())
