import json

import pytest

from gpt_parallel.report.saved_run import load_run


@pytest.fixture
def save(tmp_path):
    """Writes a document as NAME.json and returns its path."""

    def write(name, document):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def saved(save):
    """The run that a document is once it was saved and loaded."""
    return lambda name, document: load_run(save(name, document))
