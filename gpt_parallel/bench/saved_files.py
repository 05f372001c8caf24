"""Finds the saved runs in what users give: benchmark files, `result.json` files, and directories that hold them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.result_file import load_result
from gpt_parallel.bench.session_record import FILE_NAME, SessionRecord
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.report.saved_run import ReportError, ResultFileError, SavedRun, load_run, run_of_document
from gpt_parallel.schema.summary import CaseSummary

RESULT_FILE = "result.json"
_MODULE = "benchmarks/test_generation.py"  # so that the case of a result is that of a session


def load_runs(paths: Sequence[Path]) -> list[SavedRun]:
    """Read saved runs, labelled by their names, or by their paths where names are equal.

    A path is a benchmark file, a session's report directory, a storage of pytest-benchmark such as `.benchmarks` (its
    newest run), a `result.json` or a directory of them. Results of different cases are one run, as if a session had
    measured them. Raises ReportError.
    """
    runs: list[SavedRun] = []
    results: list[tuple[Path, CaseSummary]] = []
    files = [file for path in paths for file in _files_of(path)]
    if len({file.resolve() for file in files}) != len(files):
        raise ReportError("the same file is given twice")
    for file in files:
        try:
            runs.append(load_run(file))
        except ResultFileError:
            results.append((file, _summary(file)))
    runs += _runs_of_results(results)
    runs.sort(key=lambda run: files.index(run.path))
    stems = Counter(run.label for run in runs)
    return [run if stems[run.label] == 1 else replace(run, label=str(run.path)) for run in runs]


def _files_of(path: Path) -> list[Path]:
    """The files that a path stands for."""
    if not path.is_dir():
        return [path]
    if (path / FILE_NAME).is_file():
        return [path / FILE_NAME]
    if saved := sorted(path.glob("**/[0-9][0-9][0-9][0-9]_*.json"), key=lambda file: (file.name, file.parent)):
        return saved[-1:]
    if results := sorted(path.glob(f"**/{RESULT_FILE}")):
        return results
    raise ReportError(
        f"{path}: a directory without saved runs; it may have {FILE_NAME} (of a session's report), {RESULT_FILE} files "
        "(of gpt-parallel run), or runs that --benchmark-autosave saved"
    )


def _summary(path: Path) -> CaseSummary:
    try:
        return summarise([load_result(path)])
    except SpecError as error:
        raise ReportError(error.problems) from error


def _runs_of_results(results: Sequence[tuple[Path, CaseSummary]]) -> list[SavedRun]:
    """One run of all cases; or a run for each result, if the same case is there more than once."""
    cases = Counter((summary.strategy, summary.num_gpus) for _, summary in results)
    groups = [results] if cases and max(cases.values()) == 1 else [[result] for result in results]
    return [_run_of(group) for group in groups]


def _run_of(results: Sequence[tuple[Path, CaseSummary]]) -> SavedRun:
    record = SessionRecord()
    for _, summary in results:
        name = f"test_generation[{summary.strategy}-{summary.num_gpus}gpu]"
        params = {"strategy": summary.strategy, "num_gpus": summary.num_gpus}
        record.add(f"{_MODULE}::{name}", name, "generation", params, summary)
    path = results[0][0]
    measured = datetime.fromtimestamp(max(file.stat().st_mtime for file, _ in results), timezone.utc)
    document = {**record.document(), "datetime": measured.isoformat(timespec="seconds")}
    return run_of_document(document, path, path.parent.name if len(results) == 1 else "results")
