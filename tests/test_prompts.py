import pytest

from gpt_parallel.prompts import make_requests, random_prompts, read_prompts, shipped_prompts
from gpt_parallel.spec import SpecError


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
        ('{"prompt_ids": [1, -1]}', "greater than or equal to 0"),
        ('{"prompt_ids": ["a"]}', "valid integer"),
        ('{"prompt": 5}', "valid string"),
        ('{"prompt": "x", "max_length": 0}', "greater than 0"),
        ('{"prompt": "x", "length": 4}', "length = 4: Extra inputs are not permitted"),
        ('{"prompt": "x", "prompt_ids": [1]}', "exactly one of"),
        ("{}", "exactly one of"),
        ('["x"]', "must be an object"),
        ('{"prompt": "x"', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 at byte 13"),
    ],
)
def test_a_bad_line_is_named_with_its_number(write, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(b'{"prompt": "fine"}\n' + line + b"\n")

    with pytest.raises(SpecError) as failure:
        read_prompts(path)

    assert all(problem.startswith(f"{path}:2: ") for problem in failure.value.problems)
    assert reason in str(failure.value)


def test_all_bad_lines_are_named_at_once(write):
    with pytest.raises(SpecError) as failure:
        read_prompts(write("x\n{}\n" + '{"prompt": "fine"}\n' + "[]\n"))

    assert [problem.split(": ")[0].rsplit(":", 1)[1] for problem in failure.value.problems] == ["1", "2", "4"]


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
