"""Makes names from files and options harmless where they are shown."""

import html
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*\[\]|#~!$])")


def plain(value: object) -> str:
    """One line without control characters: no ANSI sequence or direction override reaches a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def markdown(value: object) -> str:
    """Text that is inert in a Markdown table cell."""
    return _MARKDOWN.sub(r"\\\1", html.escape(plain(value), quote=False))


def csv_cell(value: object) -> str:
    """Text that a spreadsheet does not take for a formula (OWASP, "CSV Injection")."""
    text = plain(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text
