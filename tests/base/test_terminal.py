"""Characters that a terminal cannot encode."""

import ast
import io

import pytest

from gpt_parallel.base.terminal import STAND_INS, stand_in, use_stand_ins
from tests.support.paths import ROOT

SOURCES = sorted((ROOT / "gpt_parallel").rglob("*.py"))


def written(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    use_stand_ins([stream])
    stream.write(text)
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_table_stays_a_table(encoding):
    table = " devices   mesh\n ─────────────\n       2†   dp2·tp2 – …\n"

    found = written(table, encoding)

    assert "\\u" not in found
    assert found.count("\n") == 3
    if encoding == "ascii":
        assert found == " devices   mesh\n -------------\n       2+   dp2.tp2 - ...\n"


def test_what_can_be_encoded_is_not_changed():
    assert written("Grüß – ─ ×", "utf-8") == "Grüß – ─ ×"
    assert written("Grüß – ×", "cp1252") == "Grüß – ×"
    assert written("配置 ─", "gbk") == "配置 ─"


def test_other_characters_lose_their_accents_or_become_question_marks():
    assert written("Grüß Gott, 你好 ³½", "ascii") == "Gru? Gott, ?? 31/2"


def test_marks_stay_different():
    assert len({stand_in(mark) for mark in "*†‡§"}) == 4


def test_every_character_of_a_message_has_a_stand_in():
    """All string literals of the package, as any of them may be printed."""
    missing = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for character in node.value:
                    if not character.isascii() and character not in STAND_INS:
                        missing.setdefault(character, path.name)

    assert missing == {}
