"""Keeps secrets and the user's home directory out of results, logs and reports, which are often shared.

Secrets are found in the environment (values of variables with names such as HF_TOKEN, passwords in URLs, the hub's
token file) or recognised by well-known shapes. A text is redacted where it leaves the process, not where it is created.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar, get_origin
from urllib.parse import quote, unquote

from pydantic import BaseModel

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import read_whole

Value = TypeVar("Value")

_HIDDEN = "***"
_MIN_LENGTH = 6  # shorter values occur in ordinary text
_MAX_TOKEN_FILE_BYTES = 4096

_SECRET_NAME = re.compile(
    r"TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY"
    r"|(?:ACCESS|ACCOUNT|ENCRYPTION|LICENSE|MASTER|PRIVATE|SIGNING)_?KEY"
    r"|(?:^|_)(?:AUTH|COOKIE|PASS|PAT|BEARER)(?:_|$)|_PWD$"
)
_NOT_SECRET_NAME = re.compile(r"_(?:PATH|FILE|DIR|DIRECTORY|HOME|SOCK|LIMIT|MODE|TYPE)$")  # a location, not a secret
_PASSWORD_IN_URL = re.compile(r"://[^\s/?#@:]*:([^\s/?#]+)@")

# Without this boundary, a text with many beginnings would be scanned to its end from each of them.
_BEGINS = r"(?:(?<![A-Za-z0-9_-]eyJ)|(?<=\\[nrt]eyJ))"
_KEY, _OF_KEYS = r"(?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?", r"[A-Za-z0-9+/=:,\s\\]"

# All alternatives begin with fixed characters, for which `re` searches before it tries any of them.
_SHAPES = (
    r"hf_[A-Za-z0-9]{16,}",
    r"gh[opsur]_[A-Za-z0-9]{20,}",
    r"github_pat_[A-Za-z0-9_]{20,}",
    r"glpat-[A-Za-z0-9_-]{16,}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"sk-[A-Za-z0-9_-]{20,}",
    r"A(?:KIA|SIA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{35}",
    rf"eyJ{_BEGINS}[A-Za-z0-9_-]{{8,}}\.[A-Za-z0-9_-]{{8,}}(?:\.[A-Za-z0-9_-]*)?",
    # The END line is optional: it may have been cut off.
    rf"-----BEGIN {_KEY}-----{_OF_KEYS}*(?:-{_OF_KEYS}+)*(?:-----END {_KEY}-----)?",
)
_KEPT_SHAPES = (
    r"(?P<scheme>[Bb](?:earer|EARER)\s{1,8}|[Aa](?:uthorization|UTHORIZATION)\W{1,8}[Bb](?:asic|ASIC)\s{1,8})"
    r"[A-Za-z0-9._~+/=-]{8,}",
    r"(?P<url>://)[^\s/?#\"'<>\\]+@",
)

# A home directory counts only where a path begins, as the whole path or its beginning: /home/me and /home/me/x, not
# /home/me2, /home/me.old or /mnt/home/me. A path also begins after an escaped line break and a compiler's -I and -L.
_PATH_BEGINS = r"(?:(?<![\w.+@~-]/)|(?<=\\[nrt]/)|(?<=-[IL]/))"
_NAME_ENDS = r"(?![\w+@~-]|\.\w)"


def redact(text: str) -> str:
    """Replace secrets by `***` and the home directory by `~`. A redacted text does not change any more."""
    return _apply(_current_pattern(), text)


def redact_tree(value: Value) -> Value:
    """Redact every text in lists, tuples, mappings (keys included) and pydantic models.

    A model's literals and the keys of its mappings stay: they are this package's own words and no secrets, even where a
    variable has the same value.
    """
    return _tree(_current_pattern(), value)


def redact_log() -> None:
    """Redact all further log records of the package before any handler sees them."""
    logging.getLogger("gpt_parallel").addFilter(_redact_record)


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), None
    return True


def _apply(pattern: re.Pattern[str], text: str) -> str:
    # The remains of one secret may complete another. The loop ends: each change leaves fewer characters other than
    # stars, a shorter text, or three stars in place of fewer.
    while (changed := pattern.sub(_replace, text)) != text:
        text = changed
    return text


def _replace(match: re.Match[str]) -> str:
    match match.lastgroup:
        case "home":
            return "~"
        case "scheme":
            return match["scheme"] + _HIDDEN
        case "url":
            return f"://{_HIDDEN}@"
    return _HIDDEN


def _tree(pattern: re.Pattern[str], value: Value) -> Value:
    changed: object = value
    if isinstance(value, str):
        changed = _apply(pattern, value)
    elif isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        texts = {name: getattr(value, name) for name, field in fields if get_origin(field.annotation) is not Literal}
        changed = value.model_copy(update={name: _field(pattern, text) for name, text in texts.items()})
    elif isinstance(value, Mapping):
        changed = {_tree(pattern, key): _tree(pattern, item) for key, item in value.items()}
    elif isinstance(value, list):
        changed = [_tree(pattern, item) for item in value]
    elif isinstance(value, tuple):
        changed = tuple(_tree(pattern, item) for item in value)
    return changed  # type: ignore[return-value]


def _field(pattern: re.Pattern[str], value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _tree(pattern, item) for key, item in value.items()}
    return _tree(pattern, value)


def _current_pattern() -> re.Pattern[str]:
    return _pattern(tuple(os.environ.items()))


@lru_cache(maxsize=4)
def _pattern(variables: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    environment = dict(variables)
    # Longest first: a secret that is the beginning of another would leave the other's end.
    secrets = sorted({form for value in _secrets(environment) for form in _forms(value)}, key=lambda s: (-len(s), s))
    homes = sorted(_homes(environment), key=lambda s: (-len(s), s))
    alternatives = [*_KEPT_SHAPES, *map(re.escape, secrets), *_SHAPES]
    if homes:
        names = "|".join(re.escape(home.removeprefix("/")) for home in homes)
        alternatives.append(rf"(?P<home>/{_PATH_BEGINS}(?:{names}){_NAME_ENDS})")
    return re.compile("|".join(alternatives))


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        upper = name.upper()
        if _SECRET_NAME.search(upper) and not _NOT_SECRET_NAME.search(upper):
            yield from value.splitlines()
        yield from (unquote(password) for password in _PASSWORD_IN_URL.findall(value))
    for path in _token_files(environment):
        yield _read_token(path)


def _forms(secret: str) -> Iterable[str]:
    """A secret as it is, and as Python, JSON and URLs escape it."""
    secret = secret.strip()
    if len(secret) < _MIN_LENGTH or not secret.strip("*"):
        return ()
    escaped = secret.encode("utf-8", "surrogateescape")
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(escaped, safe="")}


def _homes(environment: Mapping[str, str]) -> set[str]:
    """All paths of the user's home directory."""
    homes = {environment.get("HOME", "")}
    with suppress(ImportError, KeyError, OSError):
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    homes = {home.rstrip("/") for home in homes if home.startswith("/")}
    with suppress(OSError, ValueError):
        homes |= {os.path.realpath(home) for home in homes if home}
    return {home for home in homes if home.strip("/")}


def _token_files(environment: Mapping[str, str]) -> Iterator[str]:
    """The files in which the hub's client looks for its token."""
    if path := environment.get("HF_TOKEN_PATH"):
        yield path
    if home := environment.get("HF_HOME"):
        yield os.path.join(home, "token")
    for home in _homes(environment):
        yield os.path.join(environment.get("XDG_CACHE_HOME") or os.path.join(home, ".cache"), "huggingface", "token")


def _read_token(path: str) -> str:
    with suppress(SpecError):
        return read_whole(Path(os.path.expanduser(path)), _MAX_TOKEN_FILE_BYTES, "token").decode("utf-8", "replace")
    return ""
