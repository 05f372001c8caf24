"""Whatever a benchmark file holds: it is refused by name, or a report of it can be written."""

import json

import pytest
from hypothesis import given
from jinja2 import Environment

from gpt_parallel.bench.saved_files import load_runs
from gpt_parallel.report import render
from gpt_parallel.report.compare.side_by_side import compare
from gpt_parallel.report.saved_run import load_run
from tests.fuzz.mutation import FUZZ, are_named, attempt, json_texts, mutated
from tests.report.test_render import GOLDEN
from tests.support.factories import bench, document, stats

PLAIN = {"name": "t", "fullname": "t.py::t", "group": None, "stats": stats([0.1, 0.2]), "extra_info": {"ticket": 7}}
OURS = {"not_run": [{"case": "c", "outcome": "skipped", "reason": "no GPU"}]}
FILES = [
    document(bench("a-1gpu"), bench("b-2gpu", (90.0, 110.0), num_gpus=2, dp=2, mesh="dp2"), PLAIN, gpt_parallel=OURS),
    document(bench()),
    json.loads((GOLDEN / "run.json").read_bytes()),
]


@pytest.fixture(scope="module")
def write_report(directory):
    """Writes reports without charts, which have tests of their own, and compiles the templates once."""
    with pytest.MonkeyPatch.context() as patch:
        environments = []

        def environment(**options):
            environments[:] = environments or [Environment(**options)]
            return environments[0]

        patch.setattr(render, "draw_charts", lambda *_: [])
        patch.setattr(render, "Environment", environment)
        yield lambda *runs: render.write_report(runs, directory / "report", ("md", "html", "csv", "txt"))


@FUZZ
@given(json_texts(FILES))
def test_a_benchmark_file_is_refused_or_reported(directory, write_report, content):
    path = directory / "run.json"
    path.write_bytes(content)

    run, problems = attempt(load_run, path)

    assert are_named(problems, f"{path}: ", f"benchmark file {path}: ")
    if run is not None:
        assert len(write_report(run)) == 4


@FUZZ
@given(mutated(FILES[:2]))
def test_a_benchmark_file_is_refused_or_compared(directory, head):
    for name, content in (("base", FILES[0]), ("head", head)):
        (directory / f"{name}.json").write_text(json.dumps(content))

    runs, _ = attempt(load_runs, [directory / "base.json", directory / "head.json"])

    if runs is not None:
        assert compare(runs, None).rows
        assert compare(runs[::-1], "base", allow_other_host=True).rows


@pytest.mark.parametrize("content", FILES)
def test_what_is_broken_here_is_valid_as_it_is(directory, content):
    (directory / "run.json").write_text(json.dumps(content))

    assert load_run(directory / "run.json").cases
