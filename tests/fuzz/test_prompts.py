"""Whatever a prompts file holds: requests come of it, or every problem has its file and line."""

from hypothesis import given
from hypothesis import strategies as st

from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.prompt_authoring import inspect_prompts
from gpt_parallel.inputs.prompts import check_requests, make_requests, read_numbered_prompts
from tests.fuzz.mutation import FUZZ, are_named, attempt, json_texts

LINES = [
    {"prompt": "text", "max_length": 64},
    {"prompt_ids": [1, 2, 3]},
    {"prompt": "Grüße \N{GRINNING FACE}", "max_length": 1},
    {"prompt_ids": [0] * 300, "max_length": 2**31},
]
SHAPE = ARCHITECTURES["gpt2-nano"]


def as_bytes(text):
    return list(text.encode())


@FUZZ
@given(st.lists(json_texts(LINES), max_size=4).map(b"\n".join) | st.binary(max_size=200))
def test_a_prompts_file_is_read_or_refused(directory, content):
    path = directory / "prompts.jsonl"
    path.write_bytes(content)

    numbered, problems = attempt(read_numbered_prompts, path)

    assert are_named(problems, f"{path}:", f"prompts file {path} ")
    if numbered is not None:
        prompts, places = [prompt for _, prompt in numbered], [f"{path}:{number}" for number, _ in numbered]
        requests = make_requests(prompts, as_bytes, num_requests=None, prompt_tokens=None, max_new_tokens=None)
        assert len(requests) == len(prompts)
        _, by_run = attempt(check_requests, requests, places, "m", SHAPE)
        _, by_command = attempt(inspect_prompts, path, as_bytes, SHAPE, "m")
        assert are_named(by_run, f"{path}:")
        assert len(by_run) == len(by_command)
