"""The example in docs/extending.md, run as it stands there."""

import re
import shlex

import pytest

from gpt_parallel import register_model, register_strategy
from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.models import ARCHITECTURES, has_published_weights, resolve_model
from tests.pytest_plugin.test_plugin import run_pytest
from tests.support.paths import ROOT

GUIDE = ROOT / "docs" / "extending.md"


def test_the_example_runs(tmp_path):
    text = GUIDE.read_text(encoding="utf-8")
    files = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))
    (line,) = re.findall(r"^    pytest (.*)$", text, re.MULTILINE)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    where, *options = shlex.split(line)

    done = run_pytest(*options, "--gpt-num-iterations", "1", cwd=tmp_path, where=where)

    assert set(files) == {"conftest.py", "test_mine.py"}
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("pipeline_only"))
    assert row.split()[2] == "pp4"
    assert row.split()[-1] == "exact"
    assert "gpt2-micro, weights: random" in done.stdout


@pytest.fixture
def shape():
    return ARCHITECTURES["gpt2-nano"]


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    monkeypatch.setattr("gpt_parallel.inputs.models.ARCHITECTURES", dict(ARCHITECTURES))
    monkeypatch.setattr("gpt_parallel.inputs.models._REPOSITORIES", {})


def test_a_registered_model_has_random_weights_or_those_of_its_repository(shape, monkeypatch, tiny_checkpoint):
    register_model("mine", shape)
    register_model("fetched", shape, ("me/mine",))
    asked = []
    monkeypatch.setattr("gpt_parallel.inputs.models._cached", lambda repositories: asked.append(repositories))

    assert resolve_model("mine", "auto").weights == "random"
    assert not has_published_weights("mine")
    with pytest.raises(SpecError, match="model 'mine' has no trained weights anywhere; use weights 'random'"):
        resolve_model("mine", "checkpoint")
    with pytest.raises(SpecError, match="weights are not on this disk, and offline forbids a download"):
        resolve_model("fetched", "checkpoint", offline=True)
    assert ("me/mine",) in asked


@pytest.mark.parametrize("name", ["gpt2", "", "a/b", ".hidden", "~x"])
def test_names_that_are_taken_or_look_like_something_else(shape, name):
    with pytest.raises(ValueError, match=r"already registered|must not look like"):
        register_model(name, shape)


def test_strategies_are_checked_too():
    with pytest.raises(ValueError, match="already registered"):
        register_strategy("pure_data_parallel", lambda n: None)
