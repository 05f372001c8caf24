"""ASCII stand-ins for characters that a terminal or a log cannot encode, so that tables stay tables there."""

import codecs
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

# One character for one wherever the character stands in a table.
STAND_INS = {
    **dict.fromkeys("─━╌┄", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╷╵╶╴┏┓┗┛╇╈┡┩", "+"),
    **dict.fromkeys("█▇▆▅▄▃▂▁■●•∙", "*"),
    **dict.fromkeys("–—−‐‑", "-"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’‚", "'"),
    "…": "...",
    "×": "x",
    "÷": "/",
    "·": ".",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "→": "->",
    "←": "<-",
    "✓": "+",
    "✔": "+",
    "✗": "x",
    "✘": "x",
    "†": "+",
    "‡": "#",
    "§": "&",
    "µ": "u",
    "°": " deg",
    "√": "sqrt",
    "²": "2",
    "½": "1/2",
    "ᵀ": "T",
    "\u200b": "",
    "\ufffd": "?",
}
_NAME = "gpt_parallel.stand_ins"


def stand_in(character: str) -> str:
    """The ASCII text for a character: from the table, or the character without its accents, or "?"."""
    if character in STAND_INS:
        return STAND_INS[character]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(stand_in, error.object[error.start : error.end])), error.end


codecs.register_error(_NAME, _replace)


def use_stand_ins(streams: Iterable[TextIO | None] = ()) -> None:
    """Let standard output and error, and further streams, write stand-ins instead of failing or writing escapes.

    Streams that can encode all characters, as UTF-8 ones can, write what they wrote before.
    """
    for stream in (sys.stdout, sys.stderr, *streams):
        if reconfigure := getattr(stream, "reconfigure", None):
            with suppress(OSError, ValueError):  # a terminal opened for reading too, or a closed stream
                reconfigure(errors=_NAME)
