"""A model's tokenizer: its own if its files are on disk, else UTF-8 bytes as token ids."""

from pathlib import Path
from typing import Any

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import read_whole
from gpt_parallel.inputs.chat_template import load_chat_template
from gpt_parallel.inputs.prompts import Encode, EncodeChat
from gpt_parallel.schema.model import ModelSpec

_MAX_TOKENIZER_BYTES = 64 << 20


class Tokenizer:
    """A model's own tokenizer if its files are on disk (`tokenizer.json`, or GPT-2's pair), else UTF-8 bytes as ids."""

    def __init__(self, model: ModelSpec) -> None:
        directory = Path(model.directory) if model.directory else None
        self._tokenizer = _load_tokenizer(directory, model.architecture.family) if directory else None
        self._render = load_chat_template(Path(model.directory)) if model.directory and self._tokenizer else None
        self.description = "model's tokenizer" if self._tokenizer else "bytes as token ids"
        if self._tokenizer is None and model.architecture.vocab_size < 256:
            self._modulus = model.architecture.vocab_size
            self.description += f" modulo {self._modulus}"
        else:
            self._modulus = 256
        if self._tokenizer is None and directory and (directory / "tokenizer.model").exists():
            self.description += (
                " (tokenizer.model is not read; transformers' save_pretrained makes tokenizer.json of it)"
            )

    @property
    def is_own(self) -> bool:
        """Whether this is the model's own tokenizer; otherwise ids are bytes."""
        return self._tokenizer is not None

    @property
    def encode(self) -> Encode:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return lambda text: [byte % self._modulus for byte in text.encode("utf-8")]
        return lambda text: list(tokenizer.encode(text).ids)

    @property
    def encode_chat(self) -> EncodeChat | None:
        """Tokenises chats by the model's chat template, whose text has all special tokens; None without a template."""
        tokenizer, render = self._tokenizer, self._render
        if tokenizer is None or render is None:
            return None
        return lambda messages: list(tokenizer.encode(render(messages), add_special_tokens=False).ids)

    def decode(self, ids: tuple[int, ...]) -> str | None:
        """The text of generated ids; None without a tokenizer."""
        return None if self._tokenizer is None else str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _load_tokenizer(directory: Path, family: str) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers import Tokenizer as FastTokenizer

    fast, *pair = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if fast.exists():
            return FastTokenizer.from_buffer(read_whole(fast, _MAX_TOKENIZER_BYTES, "tokenizer"))
        if family == "gpt2" and all(path.exists() for path in pair):  # others split text otherwise
            for path in pair:
                read_whole(path, _MAX_TOKENIZER_BYTES, "tokenizer")
            return ByteLevelBPETokenizer(*map(str, pair))
    except SpecError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise SpecError(f"{directory}: the tokenizer's files cannot be read ({error})") from error
    return None
