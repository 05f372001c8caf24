"""Recognises the encoding of a text file that does not say what it is."""

import codecs
from typing import NamedTuple

# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


# General punctuation, Chinese punctuation and characters, full-width forms.
_CHINESE = ((0x2010, 0x203F), (0x3000, 0x9FFF), (0xFF00, 0xFFEF))


class Utf8(NamedTuple):
    """A file's text in UTF-8, and the encoding that it had."""

    content: bytes
    encoding: str


def to_utf8(raw: bytes) -> Utf8:
    """The file's text: by its byte order mark, else as UTF-8, else as GBK (GB18030) if that gives Chinese text.

    Other bytes are returned as they are, as "utf-8": whoever parses them says where they are wrong.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            content = raw[len(mark) :]
            return (
                Utf8(content, "UTF-8") if encoding == "utf-8" else _converted(content, encoding) or Utf8(raw, "UTF-8")
            )
    if _decoded(raw, "utf-8") is not None:
        return Utf8(raw, "UTF-8")
    found = _converted(raw, "gb18030")
    return found if found and _is_chinese(found.content.decode()) else Utf8(raw, "UTF-8")


def _converted(raw: bytes, encoding: str) -> Utf8 | None:
    text = _decoded(raw, encoding)
    try:
        return None if text is None else Utf8(text.encode(), encoding.upper())
    except UnicodeEncodeError:  # lone surrogates, which GB18030 has
        return None


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_chinese(text: str) -> bool:
    """Whether most characters beyond ASCII are Chinese: any bytes of some other encoding rarely decode to that."""
    foreign = [character for character in text if not character.isascii()]
    chinese = sum(any(start <= ord(character) <= end for start, end in _CHINESE) for character in foreign)
    return chinese >= 0.9 * len(foreign)
