"""A model's chat template: the text of a chat, as transformers renders it for the same model."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.inputs.prompts import Message

_MAX_BYTES = 16 << 20
_MAX_TEXT = 1 << 20  # characters of one chat
_FILE, _CONFIGURATION = "chat_template.jinja", "tokenizer_config.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_chat_template(directory: Path) -> Callable[[Sequence[Message]], str] | None:
    """A function that renders a chat, with the beginning of an answer; None for a model without a template.

    A template is a program in an untrusted file, so it runs in Jinja's sandbox. Raises SpecError.
    """
    configuration = _configuration(directory / _CONFIGURATION)
    source = configuration.get("chat_template")
    if (directory / _FILE).is_file():
        source = read_whole(directory / _FILE, _MAX_BYTES, "chat template").decode("utf-8", errors="replace")
    if isinstance(source, list):  # several, by name
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    tokens = {name: text for name in _TOKENS if (text := _token(configuration.get(name))) is not None}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or the compiler would compute constants of any size
        extensions=[loopcontrols],
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}

    def render(messages: Sequence[Message]) -> str:
        chat = [message.model_dump() for message in messages]
        try:
            template = environment.from_string(source)
            pieces: list[str] = []
            for piece in template.generate(messages=chat, add_generation_prompt=True, **tokens):
                pieces.append(piece)
                if sum(map(len, pieces[-1000:])) > _MAX_TEXT or len(pieces) > _MAX_TEXT:
                    raise TemplateError(f"the text is longer than {_MAX_TEXT} characters")
        except Exception as error:  # templates may raise anything
            raise SpecError(f"{directory}: the chat template does not take this chat ({error})") from error
        return "".join(pieces)

    return render


def _configuration(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse_json(read_whole(path, _MAX_BYTES, "tokenizer configuration"))
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from error
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str | None:
    """A special token's text, which may be in an object with its properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: object) -> None:
    raise TemplateError(str(message))
