"""The cache of the judge's verdicts on disk.

A verdict is a function of weights, requests, sampling, number type, tokens and their log-probabilities, of the versions
of torch and transformers, and of the judge's own code. A file named by the digest of all these is a positive verdict.
Negative ones are not stored, and a directory that cannot be written only costs time.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.verification import TOLERANCES, Records
from gpt_parallel.launch.torch_build import torch_build
from gpt_parallel.schema.run import RunSpec

_LOGGER = logging.getLogger("gpt_parallel")
_VARIABLE = "GPT_PARALLEL_CACHE"
_MAX_KEPT = 1000


def judge_name() -> str:
    """transformers with its version. Raises SpecError if it is not installed."""
    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        raise SpecError(
            "transformers, which proves the single-device run, is not installed: pip install 'transformers>=5.3', "
            "or use judge 'engine'"
        ) from None


def directory() -> Path:
    """GPT_PARALLEL_CACHE, else the user's cache directory as the XDG base directory specification has it."""
    if own := os.environ.get(_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "gpt_parallel"


def is_kept(digest: str) -> bool:
    """Whether this judge's positive verdict is stored."""
    with suppress(OSError, RuntimeError, ValueError):
        return bool(json.loads(_path(digest).read_text(encoding="utf-8")) == _verdict())
    return False


def _verdict() -> dict[str, str]:
    return {"judge": judge_name(), "verdict": "proved"}


def keep(digest: str) -> None:
    """Store a positive verdict, and remove the oldest of many."""
    try:
        write_atomically(_path(digest), json.dumps(_verdict()) + "\n")
        by_age = sorted(_path(digest).parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-_MAX_KEPT]:
            path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        _LOGGER.info("the judge's verdict is not kept: %s", error)


def _path(digest: str) -> Path:
    return directory() / "verdicts" / f"{digest}.json"


def digest_of(spec: RunSpec, reference: Records) -> str:
    """The digest of everything that the judge's verdict on a single-device run depends on."""
    digest = hashlib.sha256()
    for part in _parts(spec, reference):
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def _parts(spec: RunSpec, reference: Records) -> Iterator[str]:
    yield from (judge_name(), str(torch_build()), version("torch"), spec.execution.device)
    yield f"{spec.execution.dtype} {TOLERANCES[spec.execution.dtype]}"
    yield spec.model.model_dump_json(include={"architecture", "weights", "seed", "key_prefix"})
    yield spec.workload.model_dump_json(include={"requests", "sampling"})
    yield from (reference[key].model_dump_json() for key in sorted(reference))
    here = Path(__file__).parent.parent
    code = [
        *sorted((here / "judge").glob("*.py")),
        here / "bench" / "verification.py",
        here / "engine" / "model" / "random_weights.py",
        here / "schema" / "model.py",
        *sorted((here / "schema" / "families").glob("*.py")),
    ]
    yield from map(_file_digest, code)
    if spec.model.weights == "checkpoint":
        assert spec.model.directory is not None
        yield from (_file_digest(Path(spec.model.directory) / name) for name in spec.model.files)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
