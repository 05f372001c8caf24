"""Reads `result.json`."""

import json
from pathlib import Path

from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.schema.earlier import result_of_version_1
from gpt_parallel.schema.result import RESULT_VERSION, RunResult, schema_problem

MAX_RESULT_BYTES = 256 << 20


def load_result(path: str | Path) -> RunResult:
    """Read a `result.json`; SpecError names the file and every wrong field."""
    raw = read_whole(Path(path), MAX_RESULT_BYTES, "result")
    try:
        document = parse_json(raw)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{path}: is not a result: it must hold an object")
    if problem := schema_problem(document.get("schema_version"), RESULT_VERSION):
        raise SpecError(f"{path}: {problem}")
    if document["schema_version"] == 1:
        raw = json.dumps(result_of_version_1(document)).encode()
    try:
        return RunResult.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise SpecError.from_validation(error, prefix=f"{path}: ") from error
