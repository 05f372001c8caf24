"""Makes names from files and options harmless where they are shown, or name a file."""

import hashlib
import html
import re

# Controls, line separators, direction overrides, and what neither UTF-8 nor XML can hold.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*\[\]|#~!$])")
# GitHub makes links of bare addresses and notifies whom an @ names; an invisible space inside keeps it from both.
_LINKS = re.compile(r"(?<=@)|(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_SLUG = 100  # file systems allow 255 bytes, and something is added


def plain(value: object) -> str:
    """One line without control characters: no ANSI sequence or direction override reaches a terminal."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def plain_lines(value: object) -> str:
    """The same for a text that may have several lines."""
    return "\n".join(map(plain, str(value).split("\n")))


def markdown(value: object) -> str:
    """Text that is inert in a Markdown table cell."""
    escaped = _MARKDOWN.sub(r"\\\1", html.escape(plain(value), quote=False))
    return _LINKS.sub("\N{ZERO WIDTH SPACE}", escaped)


def csv_cell(value: object) -> str:
    """Text that a spreadsheet does not take for a formula (OWASP, "CSV Injection")."""
    text = plain(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def slug(name: str) -> str:
    """A file's name, without a directory, for any name. Different names have different ones."""
    kept = _NOT_IN_FILE_NAMES.sub("-", name).lstrip(".-")[:_MAX_SLUG]
    if kept and kept == name:
        return kept
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept}-{digest}".lstrip("-")
