"""The shapes that a row of a prompts file may have, and the prompt in each.

A shape is a row of `SHAPES`; the first that fits is taken. A prompt's text is the part of a row that a model would be
given before its first answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gpt_parallel.base.errors import SpecError, quoted, shorten

Row = Mapping[str, Any]
LENGTH_KEYS = ("max_length", "output_tokens", "output_len", "max_new_tokens", "max_tokens")
_TEXT_KEYS = ("text", "question", "query", "content", "input")
_HUMAN = ("human", "user")
_MODEL = ("gpt", "assistant", "model", "chatgpt", "bing", "bard")


class Found(NamedTuple):
    """A row's fields for `Prompt`, the name of its shape, and the keys that were not used."""

    fields: dict[str, Any]
    form: str
    ignored: tuple[str, ...]


class Shape(NamedTuple):
    """A shape that has one of `keys`; `read(row)` returns the fields and the keys that it used."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], tuple[dict[str, Any], set[str]]]


def recognise(value: Any) -> Found:
    """The prompt in a row, which is a text or an object. Raises SpecError with what the row looks like."""
    if isinstance(value, str):
        return Found({"prompt": value}, "texts", ())
    if not isinstance(value, dict):
        raise SpecError('must be an object such as {"prompt": "…", "max_length": 64}')
    shape = next((shape for shape in SHAPES if any(key in value for key in shape.keys)), None)
    if shape is None:
        keys = ", ".join(shorten(key) for key in list(value)[:8]) or "none"
        raise SpecError(
            f'no prompt in it: its keys are {keys}; allowed: exactly one of "prompt" (text), "prompt_ids" (list of '
            'token ids), "messages" (chat), "conversations" (ShareGPT), "instruction" (Alpaca), or a text in '
            f"{', '.join(_TEXT_KEYS)}"
        )
    fields, used = shape.read(value)
    length = next((key for key in LENGTH_KEYS if key in value), None)
    if length is not None:
        fields["max_length"] = value[length]
    ignored = tuple(key for key in value if key not in used and key != length)
    form = "vLLM custom" if shape.name == "prompts" and length in ("output_tokens", "output_len") else shape.name
    return Found(fields, form, ignored)


def _read_prompt(row: Row) -> tuple[dict[str, Any], set[str]]:
    if isinstance(row.get("prompt"), list) and row["prompt"] and isinstance(row["prompt"][0], dict):
        return _first_turn("prompt", row["prompt"], "role", "content"), {"prompt"}
    given = {key: row[key] for key in ("prompt", "prompt_ids") if key in row}
    return given, set(given)


def _read_messages(row: Row) -> tuple[dict[str, Any], set[str]]:
    return _first_turn("messages", row["messages"], "role", "content"), {"messages"}


def _read_conversations(row: Row) -> tuple[dict[str, Any], set[str]]:
    key = "conversations" if "conversations" in row else "conversation"
    return _first_turn(key, row[key], "from", "value"), {key}


def _read_instruction(row: Row) -> tuple[dict[str, Any], set[str]]:
    parts = [row["instruction"], row.get("input") or ""]
    for key, part in zip(("instruction", "input"), parts, strict=True):
        if not isinstance(part, str):
            raise SpecError(f"{key} = {quoted(part)}: must be text")
    return {"prompt": "\n\n".join(part for part in parts if part)}, {"instruction", "input"}


def _read_text(row: Row) -> tuple[dict[str, Any], set[str]]:
    key = next(key for key in _TEXT_KEYS if key in row)
    return {"prompt": row[key]}, {key}


def _first_turn(key: str, turns: Any, who: str, what: str) -> dict[str, Any]:
    """The turns before the first answer, and as a text the first of a human. Turns may have either pair of keys."""
    if not isinstance(turns, list) or not turns:
        raise SpecError(f"{key} = {quoted(turns)}: must be a list of turns")
    messages: list[dict[str, str]] = []
    for index, turn in enumerate(turns):
        message = _message(f"{key}.{index}", turn, who, what)
        if message["role"] == "assistant":
            break
        messages.append(message)
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is None:
        raise SpecError(f"{key}: no turn of a human before the first answer; their roles are user or human")
    return {"prompt": first["content"], "messages": messages}


def _message(place: str, turn: Any, who: str, what: str) -> dict[str, str]:
    if isinstance(turn, dict) and who not in turn:
        who, what = ("role", "content") if who == "from" else ("from", "value")
    if not isinstance(turn, dict) or not isinstance(turn.get(who), str) or what not in turn:
        raise SpecError(f'{place} = {quoted(turn)}: must be a turn such as {{"role": "user", "content": "…"}}')
    role = "user" if turn[who] in _HUMAN else "assistant" if turn[who] in _MODEL else turn[who]
    return {"role": role, "content": _content(f"{place}.{what}", turn[what])}


def _content(place: str, content: Any) -> str:
    """A turn's text, which may be a list of parts such as {"type": "text", "text": "…"}."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "\n".join(part["text"] for part in content)
    raise SpecError(f"{place} = {quoted(content)}: must be text (images and other parts are not read)")


SHAPES: Sequence[Shape] = (
    Shape("prompts", ("prompt", "prompt_ids"), _read_prompt),
    Shape("ShareGPT", ("conversations", "conversation"), _read_conversations),
    Shape("chat", ("messages",), _read_messages),
    Shape("Alpaca", ("instruction",), _read_instruction),
    Shape("texts", _TEXT_KEYS, _read_text),
)
CHATS = ("ShareGPT", "chat")
