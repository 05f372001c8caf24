"""Escapes names from files and options before they are shown or become file names."""

import hashlib
import html
import re

# Control characters, line separators, direction overrides, and characters that UTF-8 or XML cannot hold.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*\[\]|#~!$])")
# GitHub turns bare addresses into links and notifies users named after an @; an invisible space prevents both.
_LINKS = re.compile(r"(?<=@)|(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_SLUG = 100  # file systems allow 255 bytes, and callers add suffixes


def plain(value: object) -> str:
    """Make one line without control characters: no ANSI sequence or direction override reaches a terminal."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def plain_lines(value: object) -> str:
    """Apply `plain` to every line of a text."""
    return "\n".join(map(plain, str(value).split("\n")))


def markdown(value: object) -> str:
    """Escape a text for a Markdown table cell, so that nothing in it is markup."""
    escaped = _MARKDOWN.sub(r"\\\1", html.escape(plain(value), quote=False))
    return _LINKS.sub("\N{ZERO WIDTH SPACE}", escaped)


def csv_cell(value: object) -> str:
    """Escape a text so that a spreadsheet does not take it for a formula (OWASP, "CSV Injection")."""
    text = plain(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def slug(name: str) -> str:
    """Turn any name into a file name without a directory. Different names give different file names."""
    kept = _NOT_IN_FILE_NAMES.sub("-", name).lstrip(".-")[:_MAX_SLUG]
    if kept and kept == name:
        return kept
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept}-{digest}".lstrip("-")
