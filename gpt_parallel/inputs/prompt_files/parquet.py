"""The rows of a Parquet file, which needs the package pyarrow."""

from collections.abc import Iterator
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.prompt_files.containers import Row, Rows, table_row

MAGIC = b"PAR1"
_MAX_ROWS = 1_000_000
_MAX_BYTES = 1 << 29  # uncompressed
_ROWS_AT_ONCE = 256


def parquet_rows(path: Path) -> Rows:
    """The rows of a file, read in pieces. Raises SpecError if it cannot be read or is too large."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SpecError(
            f"prompts file {path}: Parquet is read by pyarrow, which is not installed: "
            "pip install 'gpt-parallel[parquet]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        metadata = file.metadata
        size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        num_rows = metadata.num_rows
    except Exception as error:  # pyarrow raises many kinds
        raise SpecError(f"prompts file {path}: not a valid Parquet file ({_first_line(error)})") from error
    if num_rows > _MAX_ROWS or size > _MAX_BYTES:
        raise SpecError(
            f"prompts file {path}: {num_rows} rows of {size} bytes; allowed: at most {_MAX_ROWS} rows and "
            f"{_MAX_BYTES} bytes"
        )
    return Rows("Parquet", _rows(path, file))


def _rows(path: Path, file: object) -> Iterator[Row]:
    number = size = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):  # type: ignore[attr-defined]
            size += batch.nbytes
            if size > _MAX_BYTES:
                raise SpecError(f"prompts file {path}: more than {_MAX_BYTES} bytes, the most allowed")
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", table_row(row))
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{path}: row {number + 1}: cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
