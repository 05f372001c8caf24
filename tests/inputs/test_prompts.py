import json

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.prompt_files.containers import MAX_LINE_BYTES
from gpt_parallel.inputs.prompt_files.read import MAX_FILE_BYTES, read_prompts
from gpt_parallel.inputs.prompts import make_requests, random_prompts, shipped_prompts
from gpt_parallel.inputs.settings import make_settings


def as_bytes(text):
    return list(text.encode())


def requests(prompts, **lengths):
    given = {"num_requests": None, "prompt_tokens": None, "max_new_tokens": None} | lengths
    return make_requests(prompts, as_bytes, **given)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_twenty_varied_prompts_are_shipped():
    prompts = read_prompts(shipped_prompts())
    texts = [prompt.prompt for prompt in prompts]

    assert len(texts) == 20
    assert len({text.encode()[:32] for text in texts}) == 20, "cut to the smoke preset's length they still differ"
    assert min(map(len, texts)) < 40
    assert max(map(len, texts)) > 1000
    scripts = ("の", "ا", "в", "는", "ा", "的", "ü", "é")
    assert all(any(letter in text for text in texts) for letter in scripts)
    assert any("SELECT" in text for text in texts)
    assert any("def " in text for text in texts)


def test_reads_text_and_ids(write):
    prompts = read_prompts(write('{"prompt": "Grüße", "max_length": 3}\n\n{"prompt_ids": [5, 6]}\n'))

    first, second = requests(prompts)
    assert first.prompt_ids == tuple("Grüße".encode())
    assert first.max_new_tokens == 3
    assert second.prompt_ids == (5, 6)
    assert second.max_new_tokens == 64


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": ""}', "at least 1 character"),
        ('{"prompt_ids": []}', "at least 1 item"),
        ('{"prompt_ids": [1, -1]}', "at least 0"),
        ('{"prompt_ids": ["a"]}', "must be an integer"),
        ('{"prompt": 5}', "must be text"),
        ('{"prompt": "x", "max_length": 0}', "greater than 0"),
        ('{"prompt": "x", "prompt_ids": [1]}', "exactly one of"),
        ("{}", "exactly one of"),
        ('["x"]', "must be an object"),
        ('{"prompt": "x"', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 at byte 13"),
        ('{"prompt": "x"}'.encode("utf-16"), "not valid UTF-8 at byte 1"),
        ('{"prompt": "x", "max_length": NaN}', "NaN is not a JSON number"),
        ('{"prompt": "x", "max_length": true}', "max_length = True: must be an integer"),
        ('{"prompt": "x", "max_length": "5"}', "max_length = '5': must be an integer"),
        ('{"prompt": "x", "max_length": 5.0}', "max_length = 5.0: must be an integer"),
        ('{"prompt": "x", "max_length": null}', "max_length = None"),
        (b'{"prompt": "x", "max_length": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ('{"prompt_ids": [true]}', "prompt_ids.0 = True: must be an integer"),
        ('{"prompt_ids": ["1"]}', "prompt_ids.0 = '1'"),
        ('{"prompt_ids": [[1]]}', "prompt_ids.0 = [1]"),
        ('{"prompt_ids": {"1": 2}}', "prompt_ids"),
        ('{"prompt_ids": "12"}', "prompt_ids = '12'"),
        ('{"prompt": "x", "prompt": "y"}', "duplicate key 'prompt'"),
        (r'{"prompt": "\ud800"}', "prompt = '\\ud800': must be text"),
        ('{"prompt": ' + "[" * 99999, "nested deeper"),
        ('{"prompt": "' + "x" * MAX_LINE_BYTES + '"}', "a line of 1048590 bytes; allowed: at most 1048576"),
        ('{"prompt": "' + "x" * 10_000_000 + '"}', "a line of 10000014 bytes; allowed: at most 1048576"),
        ('{"prompt": ["' + "x" * 100_000 + '"]}', "prompt = ['xxx"),
        ('{"' + "x" * 100_000 + '": 1}', "xxx…; allowed: exactly one of"),
    ],
)
def test_a_bad_line_is_named_with_its_number(write, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(b'{"prompt": "fine"}\n' + line + b"\n")

    with pytest.raises(SpecError) as failure:
        read_prompts(path)

    assert all(problem.startswith(f"{path}:2: ") for problem in failure.value.problems)
    assert reason in str(failure.value)
    assert len(str(failure.value)) < 1000


def test_all_bad_lines_are_named_at_once(write):
    with pytest.raises(SpecError) as failure:
        read_prompts(write("x\n{}\n" + '{"prompt": "fine"}\n' + "[]\n"))

    assert [problem.split(": ")[0].rsplit(":", 1)[1] for problem in failure.value.problems] == ["1", "2", "4"]


def test_of_many_bad_lines_the_first_are_named(write):
    with pytest.raises(SpecError) as failure:
        read_prompts(write("x\n" * 1000))

    assert len(failure.value.problems) == 21
    assert failure.value.problems[-1] == "… and 980 more"
    with pytest.raises(SpecError) as failure:
        read_prompts(write(json.dumps({"prompt_ids": [-1] * 1000})))
    assert len(failure.value.problems) == 21


def test_what_other_systems_write_is_read(write):
    lines = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt_ids": [0], "max_length": 1}\r\n'

    assert [request.prompt_ids for request in requests(read_prompts(write(lines)))] == [(97,), (0,)]


def test_any_text_is_a_prompt(write):
    text = "\0\x1b[31m\u2028\U0001f600"

    assert requests(read_prompts(write(json.dumps({"prompt": text}))))[0].prompt_ids == tuple(text.encode())


def test_a_line_may_be_as_long_as_is_said(write):
    shell = len('{"prompt": ""}')

    assert len(read_prompts(write('{"prompt": "' + "x" * (MAX_LINE_BYTES - shell) + '"}'))[0].prompt) > 10**6


def test_a_file_that_is_too_large_is_not_read(write):
    path = write("")
    with path.open("r+b") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)

    with pytest.raises(SpecError, match=r"prompts\.jsonl: larger than 64 MiB, the most allowed"):
        read_prompts(path)


@pytest.fixture
def suite(write):
    """A suite of gpt2-nano, which has 256 positions, and of a file of prompts."""
    return lambda content, **given: Suite(
        make_settings("smoke", {"prompts": str(write(content)), "device": "cpu", **given})
    )


@pytest.mark.parametrize(("length", "new"), [(192, 64), (191, 64), (255, 1), (1, 255)])
def test_all_positions_may_be_used(suite, length, new):
    spec = suite(json.dumps({"prompt_ids": [7] * length, "max_length": new})).spec("pure_data_parallel", 1)

    assert spec.workload.requests[0].total_tokens == length + new


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"prompt_ids": [7] * 193}, "193 prompt + 64 new tokens = 257, but gpt2-nano has 256 positions"),
        ({"prompt": "x" * 256, "max_length": 1}, "256 prompt + 1 new tokens = 257, but gpt2-nano has 256 positions"),
        ({"prompt": "x", "max_length": 256}, "1 prompt + 256 new tokens = 257, but gpt2-nano has 256 positions"),
        ({"prompt": "x", "max_length": 10**30}, "1 prompt + 1000000000000000000000000000000 new tokens"),
        ({"prompt_ids": [4096]}, "token id 4096 is outside gpt2-nano's vocabulary; allowed: 0 to 4095"),
        ({"prompt_ids": [10**30]}, "token id 1000000000000000000000000000000 is outside"),
    ],
)
def test_a_prompt_that_does_not_fit_is_named_by_file_and_line(suite, line, problem, tmp_path):
    content = '{"prompt": "fine"}\n\n' + json.dumps(line)

    for going_round in ({}, {"num_samples": 9}):
        with pytest.raises(SpecError) as failure:
            suite(content, **going_round).spec("pure_data_parallel", 1)
        assert len(failure.value.problems) == 1
        assert str(failure.value).startswith(f"{tmp_path / 'prompts.jsonl'}:3: request 1: {problem}")


def test_a_prompt_that_is_cut_to_fit_is_fine(suite):
    spec = suite(json.dumps({"prompt_ids": [7] * 900}), prompt_tokens=192).spec("pure_data_parallel", 1)

    assert spec.workload.requests[0].total_tokens == 256


def test_prompts_that_no_file_has_are_named_by_request():
    settings = make_settings("smoke", {"prompts": "random", "device": "cpu", "prompt_tokens": 256})

    with pytest.raises(SpecError, match=r"^request 0: 256 prompt"):
        Suite(settings.model_copy(update={"max_length": 64})).spec("pure_data_parallel", 1)


@pytest.mark.parametrize("prompts", ["random", "builtin"])
@pytest.mark.parametrize("given", [{"prompt_tokens": 10**12}, {"num_samples": 10**12}, {"num_samples": 10**5000}])
def test_work_beyond_all_memory_is_refused(prompts, given):
    settings = make_settings("smoke", {"prompts": prompts, "device": "cpu"}).model_copy(update=given)

    with pytest.raises(SpecError, match="is too large; allowed: at most 1000000 requests and 67108864 tokens"):
        Suite(settings).spec("pure_data_parallel", 1)


def test_an_empty_or_missing_file(write, tmp_path):
    with pytest.raises(SpecError, match="has no prompts"):
        read_prompts(write("\n \n"))
    with pytest.raises(SpecError, match="cannot be read"):
        read_prompts(tmp_path / "absent")


def test_prompts_are_cut_repeated_and_gone_round(write):
    prompts = read_prompts(write('{"prompt_ids": [1, 2, 3]}\n{"prompt_ids": [4, 5, 6, 7, 8, 9]}\n'))

    made = requests(prompts, num_requests=3, prompt_tokens=5, max_new_tokens=2)

    assert [request.prompt_ids for request in made] == [(1, 2, 3, 1, 2), (4, 5, 6, 7, 8), (1, 2, 3, 1, 2)]
    assert [request.request_id for request in made] == [0, 1, 2]
    assert {request.max_new_tokens for request in made} == {2}


def test_random_prompts_depend_on_their_seed():
    def ids(seed):
        return [prompt.prompt_ids for prompt in random_prompts(3, 9, 50, seed)]

    assert ids(1) == ids(1) != ids(2)
    assert all(len(prompt) == 9 and max(prompt) < 50 for prompt in ids(1))


def test_a_prompt_without_tokens_is_refused(write):
    prompts = read_prompts(write('{"prompt": "x"}'))

    with pytest.raises(SpecError, match="prompt 1 is empty after tokenisation"):
        make_requests(prompts, lambda text: [], num_requests=None, prompt_tokens=None, max_new_tokens=None)
    with pytest.raises(SpecError, match="p:7 is empty after tokenisation"):
        make_requests(
            prompts, lambda text: [], num_requests=None, prompt_tokens=None, max_new_tokens=None, places=["p:7"]
        )
