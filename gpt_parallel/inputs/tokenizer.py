"""A model's tokenizer: its own byte-level BPE if its files are on disk, else UTF-8 bytes as token ids."""

from pathlib import Path
from typing import Any

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import read_whole
from gpt_parallel.inputs.prompts import Encode
from gpt_parallel.schema.model import ModelSpec

_MAX_TOKENIZER_BYTES = 64 << 20


class Tokenizer:
    """A model's own byte-level BPE tokenizer if its files are on disk, else UTF-8 bytes as ids."""

    def __init__(self, model: ModelSpec) -> None:
        self._tokenizer = _load_tokenizer(Path(model.directory)) if model.directory else None
        self.description = "model's tokenizer" if self._tokenizer else "bytes as token ids"
        if self._tokenizer is None and model.architecture.vocab_size < 256:
            self._modulus = model.architecture.vocab_size
            self.description += f" modulo {self._modulus}"
        else:
            self._modulus = 256

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

    def decode(self, ids: tuple[int, ...]) -> str | None:
        """The text of generated ids; None without a tokenizer."""
        return None if self._tokenizer is None else str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _load_tokenizer(directory: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers import Tokenizer as FastTokenizer

    fast, *pair = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if fast.exists():
            return FastTokenizer.from_buffer(read_whole(fast, _MAX_TOKENIZER_BYTES, "tokenizer"))
        if all(path.exists() for path in pair):
            for path in pair:
                read_whole(path, _MAX_TOKENIZER_BYTES, "tokenizer")
            return ByteLevelBPETokenizer(*map(str, pair))
    except SpecError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise SpecError(f"{directory}: the tokenizer's files cannot be read ({error})") from error
    return None
