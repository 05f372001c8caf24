"""Prompts as people have them: many formats, recognised by their shape."""

import json

import pytest
from typer.testing import CliRunner

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli import app
from gpt_parallel.inputs.prompt_files import parquet as parquet_module
from gpt_parallel.inputs.prompt_files import read as read_module
from gpt_parallel.inputs.prompt_files.read import read_prompt_file
from gpt_parallel.inputs.settings import make_settings

SHAREGPT = [
    {
        "id": "x",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "How are you?"},
            {"from": "gpt", "value": "Fine."},
            {"from": "human", "value": "And now?"},
        ],
    }
]
CHAT = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "!"},
    ]
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content, ensure_ascii=False)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def lines(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "shown", "prompts"),
    [
        ("p.jsonl", lines({"prompt": "a", "max_length": 3}), "p.jsonl", [("a", 3)]),
        ("p.jsonl", lines({"prompt": "a", "id": 7, "category": "x"}), "p.jsonl", [("a", 64)]),
        ("p.json", [{"prompt": "a"}, {"prompt": "b", "max_length": 2}], "p.json (JSON array)", [("a", 64), ("b", 2)]),
        ("p.json", {"version": 1, "data": [{"prompt": "a"}]}, "p.json (JSON array)", [("a", 64)]),
        ("p.json", json.dumps({"prompt": "a"}, indent=1), "p.json (JSON object)", [("a", 64)]),
        ("p.json", ["a", "b"], "p.json (JSON array)", [("a", 64), ("b", 64)]),
        ("sharegpt.json", SHAREGPT, "sharegpt.json (ShareGPT, first human turn)", [("How are you?", 64)]),
        ("p.jsonl", lines(SHAREGPT[0]), "p.jsonl (ShareGPT, first human turn)", [("How are you?", 64)]),
        ("p.jsonl", lines(CHAT), "p.jsonl (chat, first human turn)", [("Hello", 64)]),
        ("p.jsonl", lines({"prompt": CHAT["messages"]}), "p.jsonl", [("Hello", 64)]),
        (
            "p.jsonl",
            lines({"instruction": "Add.", "input": "1 2", "output": "3"}),
            "p.jsonl (Alpaca)",
            [("Add.\n\n1 2", 64)],
        ),
        ("p.json", [{"instruction": "Sing.", "input": ""}], "p.json (Alpaca)", [("Sing.", 64)]),
        ("p.jsonl", lines({"prompt": "a", "output_tokens": 9}), "p.jsonl (vLLM custom)", [("a", 9)]),
        ("p.jsonl", lines({"question": "a?", "answer": "b"}), "p.jsonl (texts)", [("a?", 64)]),
        ("p.txt", "first\n\nsecond\r\n", "p.txt (text, a prompt a line)", [("first", 64), ("second", 64)]),
        ("prompts", "first\nsecond", "prompts (text, a prompt a line)", [("first", 64), ("second", 64)]),
        ("p.csv", 'id,prompt,max_length\n1,"a, b",5\n2,c,\n', "p.csv (CSV)", [("a, b", 5), ("c", 64)]),
        ("p.csv", "id;text\n1;a\n", "p.csv (CSV)", [("a", 64)]),
        ("p.tsv", "prompt\tmax_length\na\t5\n", "p.tsv (TSV)", [("a", 5)]),
        ("p.txt", "你好，世界".encode("gbk"), "p.txt (text, a prompt a line, GB18030)", [("你好，世界", 64)]),
        ("p.jsonl", lines({"prompt": "写一首诗"}).encode("gbk"), "p.jsonl (GB18030)", [("写一首诗", 64)]),
        ("p.jsonl", lines({"prompt": "Grüße"}).encode("utf-16"), "p.jsonl (UTF-16-LE)", [("Grüße", 64)]),
        ("p.csv", "prompt\nGrüße\n".encode("utf-8-sig"), "p.csv (CSV)", [("Grüße", 64)]),
    ],
)
def test_a_format_is_recognised_by_its_shape(write, name, content, shown, prompts):
    file = read_prompt_file(write(name, content))

    assert [(prompt.prompt, prompt.max_length) for prompt in file.prompts] == prompts
    assert file.name() == shown


def test_parquet_is_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "max_length": [3, None], "id": [1, 2]}), path)

    file = read_prompt_file(path)

    assert [(prompt.prompt, prompt.max_length) for prompt in file.prompts] == [("a", 3), ("b", 64)]
    assert file.name() == "p.parquet (Parquet)"
    assert file.ignored == {"id": 2}


def test_parquet_without_its_reader_is_one_sentence(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    with pytest.raises(SpecError, match="Parquet is read by pyarrow, which is not installed: pip install"):
        read_prompt_file(write("p.parquet", b"PAR1"))


def test_a_parquet_file_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["x" * 1000] * 1000}), path)  # a dictionary makes it tiny on disk
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(parquet_module, "_MAX_BYTES", 100_000)

    with pytest.raises(SpecError, match="the most allowed"):
        read_prompt_file(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "p.jsonl",
            lines({"id": 7, "title": "x"}),
            ":1: no prompt in it: its keys are id, title; allowed: exactly one of",
        ),
        ("p.json", [{"prompt": "a"}, {"prompt": 5}], ": row 2: prompt = 5: must be text"),
        ("p.json", [{"conversations": []}], ": row 1: conversations = []: must be a list of turns"),
        ("p.json", [{"messages": [{"role": "assistant", "content": "x"}]}], ": row 1: messages: no turn of a human"),
        ("p.json", [{"messages": [{"content": "x"}]}], ': must be a turn such as {"role": "user", "content": "…"}'),
        ("p.json", [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], ": must be text (images and"),
        ("p.jsonl", lines({"instruction": 5}), ":1: instruction = 5: must be text"),
        ("p.csv", "id,title\n1,x\n", ":2: no prompt in it: its keys are id, title"),
        ("p.csv", 'prompt\n"open\n', "not a valid table"),
        ("p.json", "[{", "not valid JSON, perhaps truncated"),
        ("p.txt", b"a\x00b", "looks like binary data (byte 2)"),
        ("p.txt", "Grüße".encode("latin-1"), ":1: neither UTF-8 nor GBK at byte 3; convert it to UTF-8"),
        ("p.jsonl", b"\x1f\x8b\x08xxx", "is a gzip archive; unpack it first"),
        ("p.jsonl", b"PK\x03\x04xxx", "is a zip archive; unpack it first"),
        ("p.parquet", b"PAR1xxxx", "not a valid Parquet file"),
        ("p.csv", "", "has no prompts"),
        ("p.jsonl", lines({"prompt": "a", "output_tokens": "9"}), ":1: max_length = '9': must be an integer"),
    ],
)
def test_what_cannot_be_read_says_where_and_what_is_allowed(write, name, content, problem):
    path = write(name, content)

    with pytest.raises(SpecError) as failure:
        read_prompt_file(path)

    assert problem in str(failure.value)
    assert str(path) in str(failure.value)


def test_keys_without_effect_are_listed_in_one_line(write):
    file = read_prompt_file(
        write("p.jsonl", lines({"prompt": "a", "id": 1, "max_lenght": 5}, {"prompt": "b", "id": 2}))
    )

    assert file.ignored == {"id": 2, "max_lenght": 1}
    assert file.note_on_ignored == "p.jsonl: keys without effect are ignored: id, max_lenght (did you mean max_length?)"


def test_a_run_names_the_format_and_the_keys(write):
    settings = {"prompts": str(write("sharegpt.json", SHAREGPT)), "device": "cpu"}
    suite = Suite(make_settings("smoke", settings))

    spec = suite.spec("pure_data_parallel", 1)

    assert spec.workload.source == "sharegpt.json (ShareGPT, first human turn), bytes as token ids"
    assert suite.notes == ["sharegpt.json: keys without effect are ignored: id"]
    assert spec.workload.requests[0].prompt_ids == tuple(b"How are you?")


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_model(tiny_checkpoint):
    """A tiny checkpoint with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tiny_checkpoint(vocab_size=300)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    configuration = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(configuration))
    return directory


def test_a_chat_is_rendered_by_the_model_s_template_as_transformers_does(write, chat_model):
    from transformers import PreTrainedTokenizerFast

    settings = {
        "prompts": str(write("p.json", SHAREGPT)),
        "model": str(chat_model),
        "weights": "random",
        "max_length": 5,
        "device": "cpu",
    }
    suite = Suite(make_settings("smoke", settings))

    workload = suite.spec("pure_data_parallel", 1).workload

    assert workload.source == "p.json (ShareGPT, the model's chat template), model's tokenizer"
    text = suite.tokenizer.decode(workload.requests[0].prompt_ids)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(chat_model / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
    assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s><system>Be brief.\n<user>How are you?\n<assistant>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "the chat template does not take this chat (no system role)"),
        ("{{ messages.__class__.__mro__ }}", "does not take this chat"),
        ("{% for i in range(10**9) %}x{% endfor %}", "does not take this chat"),
        ("{{ ''.join(['x'] * 10**7) }}", "does not take this chat"),
        ("{% if %}", "does not take this chat"),
    ],
)
def test_a_template_that_misbehaves_is_one_sentence(write, chat_model, template, message):
    (chat_model / "chat_template.jinja").write_text(template)
    settings = {
        "prompts": str(write("p.json", SHAREGPT)),
        "model": str(chat_model),
        "weights": "random",
        "max_length": 5,
        "device": "cpu",
    }

    with pytest.raises(SpecError) as failure:
        Suite(make_settings("smoke", settings)).spec("pure_data_parallel", 1)

    assert message in str(failure.value)


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_the_shipped_prompts_are_checked_without_a_file():
    done = run("validate")

    assert done.exit_code == 0, done.output
    assert "read as JSON Lines: prompts.jsonl, UTF-8, 20 prompts" in done.output
    assert "20 prompts, all can be run with gpt2" in done.output


def test_validate_says_what_was_understood(write):
    done = run("validate", write("sharegpt.json", SHAREGPT))

    assert done.exit_code == 0, done.output
    assert "read as JSON array: sharegpt.json (ShareGPT, first human turn), UTF-8, 1 prompts" in done.output
    assert "note: sharegpt.json: keys without effect are ignored: id" in done.output


def test_convert_writes_json_lines_that_mean_the_same(write, tmp_path):
    source = write("p.csv", "prompt,max_length,id\n你好,5,1\nb,,2\n")
    target = tmp_path / "out.jsonl"

    done = run("convert", source, target)

    assert done.exit_code == 0, done.output
    assert (
        target.read_text(encoding="utf-8") == '{"prompt": "你好", "max_length": 5}\n{"prompt": "b", "max_length": 64}\n'
    )
    assert read_prompt_file(target).prompts == read_prompt_file(source).prompts
    again = run("convert", source, target)
    assert again.exit_code == 2
    assert "exists already; --force replaces it" in again.output
    assert run("convert", source, target, "--force").exit_code == 0


def test_a_file_that_cannot_be_converted_leaves_nothing(write, tmp_path):
    done = run("convert", write("p.json", [{"x": 1}]), tmp_path / "out.jsonl")

    assert done.exit_code == 2
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("content", ["0\n", "x\n", '{"prompt": "a"}\n'])
def test_the_number_of_rows_is_bounded_whatever_they_are(write, content, monkeypatch):
    monkeypatch.setattr(read_module, "MAX_SAMPLES", 100)

    assert len(read_module.read_prompt_file(write("p.txt", '{"prompt": "a"}\n' * 100)).rows) == 100
    with pytest.raises(SpecError, match="more than 100 prompts, the most allowed"):
        read_module.read_prompt_file(write("p.jsonl", content * 101))
