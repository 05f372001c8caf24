"""Whatever a prompts file holds: requests come of it, or every problem has its file and line."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.prompt_authoring import inspect_prompts
from gpt_parallel.inputs.prompt_files.read import read_prompt_file
from gpt_parallel.inputs.prompts import check_requests, make_requests
from tests.fuzz.mutation import FUZZ, are_named, attempt, json_texts

LINES = [
    {"prompt": "text", "max_length": 64},
    {"prompt_ids": [1, 2, 3]},
    {"prompt": "Grüße \N{GRINNING FACE}", "max_length": 1},
    {"prompt_ids": [0] * 300, "max_length": 2**31},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 7},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    {"instruction": "a", "input": "b", "output": "c"},
    {"prompt": "a", "output_tokens": 5},
]
FEW = settings(FUZZ, max_examples=400)
SHAPE = ARCHITECTURES["gpt2-nano"]


def as_bytes(text):
    return list(text.encode())


def check(path):
    """It is read or refused, and a run and `data validate` say the same of it."""
    file, problems = attempt(read_prompt_file, path)

    assert are_named(problems, f"{path}", f"prompts file {path}")
    if file is not None:
        assert file.name()
        requests = make_requests(file.prompts, as_bytes, num_requests=None, prompt_tokens=None, max_new_tokens=None)
        assert len(requests) == len(file.rows)
        _, by_run = attempt(check_requests, requests, file.places, "m", SHAPE)
        _, by_command = attempt(inspect_prompts, file, as_bytes, SHAPE, "m")
        assert are_named(by_run, f"{path}")
        assert len(by_run) == len(by_command)


@FUZZ
@given(
    st.lists(json_texts(LINES), max_size=4).map(b"\n".join) | st.binary(max_size=200),
    st.sampled_from(["jsonl", "json", "txt", "csv", "tsv", "parquet", "data"]),
)
def test_a_prompts_file_is_read_or_refused(directory, content, suffix):
    path = directory / f"prompts.{suffix}"
    path.write_bytes(content)

    check(path)


@FEW
@given(st.lists(json_texts(LINES), max_size=3).map(lambda rows: b"[" + b",".join(rows) + b"]"), st.booleans())
def test_a_json_document_is_read_or_refused(directory, content, is_wrapped):
    path = directory / "prompts.json"
    path.write_bytes(b'{"data": ' + content + b"}" if is_wrapped else content)

    check(path)


@FEW
@given(st.text(max_size=100), st.sampled_from(["utf-16", "utf-8-sig", "gb18030", "utf-32", "latin-1", "shift_jis"]))
def test_a_text_in_any_encoding_is_read_or_refused(directory, text, encoding):
    path = directory / "prompts.txt"
    path.write_bytes(text.encode(encoding, errors="ignore"))

    check(path)


@FEW
@given(st.lists(st.lists(st.text(max_size=9), min_size=2, max_size=3), max_size=5), st.sampled_from(",;\t"))
def test_a_table_is_read_or_refused(directory, rows, delimiter):
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows([["id", "prompt"], *rows])
    path = directory / "prompts.csv"
    path.write_text(written.getvalue(), encoding="utf-8", errors="ignore")

    check(path)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path_factory.mktemp("parquet") / "prompts.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b" * 50], "max_length": [3, 4], "id": [1, None]}), path)
    return path.read_bytes()


@FEW
@given(st.data())
def test_a_broken_parquet_file_is_read_or_refused(directory, parquet, data):
    content = bytearray(parquet)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = directory / "prompts.parquet"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])

    check(path)
