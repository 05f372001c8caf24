"""Whatever a configuration file holds: settings come of it, or it is refused by name."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpt_parallel.inputs.settings import Settings, make_settings
from gpt_parallel.inputs.yaml_file import read_config, to_yaml
from tests.fuzz.mutation import FUZZ, are_named, attempt, damaged, mutated

FILES = [
    {"preset": "smoke", "workload": {"batch_size": 3}, "mesh": {"num_gpus": [1, 2]}},
    {"model": {"model": "gpt2"}, "workload": {"prompts": "random", "temperature": 0.5}, "execution": {"verify": False}},
    yaml.safe_load(to_yaml(make_settings("smoke", {}))),
]
SPLICES = [
    *("&a ", "*a", "<<: ", "? ", "- ", ": ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set "),
    *(
        "!!omap ",
        "!!pairs ",
        "!!python/object:os.system ",
        "!",
        "!<",
        "%YAML 9.9\n---\n",
        "---\n",
        "...\n",
        "|2\n",
        ">-\n",
    ),
    *(
        "1:30:15",
        "0x" + "F" * 5000,
        "2026-99-99",
        "[" * 500,
        "{" * 500,
        '"\\UFFFFFFFF"',
        "\t",
        "\x07",
        "\ufeff",
        "~",
        ".inf",
    ),
]


@st.composite
def texts(draw):
    """A configuration in YAML, with something put in at the start of a word or line."""
    text = yaml.dump(draw(mutated(FILES)), allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans()))
    if draw(st.booleans()):
        words = [at for at, letter in enumerate(text) if letter in " \n[{"] or [0]
        at = words[draw(st.integers(0, len(words) - 1))] + 1
        text = text[:at] + draw(st.sampled_from(SPLICES)) + text[at:]
    return text.encode("utf-8", "surrogatepass")


@FUZZ
@given(damaged(texts()) | st.binary(max_size=100))
def test_a_configuration_is_read_or_refused(directory, content):
    path = directory / "c.yaml"
    path.write_bytes(content)

    file, problems = attempt(read_config, path)

    assert are_named(problems, f"{path}:", f"configuration file {path}:")
    assert file is None or Settings.model_validate(file.values)


@pytest.mark.parametrize("document", FILES)
def test_what_is_broken_here_is_valid_as_it_is(directory, document):
    (directory / "c.yaml").write_text(yaml.dump(document))

    assert read_config(directory / "c.yaml").values
