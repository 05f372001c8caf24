"""The house rules on who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gpt_parallel"
FILES = sorted(PACKAGE.rglob("*.py"))
SCHEMAS = ("frozen", "model_spec", "problems", "readings", "result", "spec")
CUTTING = ("mesh", "pipeline_parallel", "tensor_parallel")  # of engine/, without torch: which rank holds what
USED_BY_THE_JUDGE = ("engine.events", "engine.weights", "engine.worker", "judge", *SCHEMAS)  # nothing that computes
USED_BY_RANKS = ("engine", *SCHEMAS, "staged", "wire", "__version__")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def starts_with(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_room_imports_only_what_it_may(path):
    room = path.relative_to(PACKAGE).parts[0]
    for name in imported_modules(path):
        assert room == "judge" or not starts_with(name, "transformers")
        if path.stem in CUTTING:
            assert not starts_with(name, "torch"), name
        if room == "engine":
            if starts_with(name, "gpt_parallel"):
                assert any(starts_with(name, f"gpt_parallel.{module}") for module in USED_BY_RANKS), name
        elif room == "judge":
            if starts_with(name, "gpt_parallel"):
                assert any(starts_with(name, f"gpt_parallel.{module}") for module in USED_BY_THE_JUDGE), name
        else:
            assert not starts_with(name, "torch"), name
            if not any(starts_with(name, f"gpt_parallel.engine.{module}") for module in CUTTING):
                assert not any(starts_with(name, f"gpt_parallel.{other}") for other in ("engine", "judge")), name
        if room == "report":
            assert not starts_with(name, "gpt_parallel.launch"), name


def test_the_parent_side_brings_in_no_torch():
    modules = ["gpt_parallel.suite", "gpt_parallel.pytest_plugin", "gpt_parallel.cli", "gpt_parallel.session"]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_free():
    code = "import sys, gpt_parallel; print([m for m in ('torch', 'pydantic', 'pytest', 'rich') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    import gpt_parallel

    for name in gpt_parallel.__all__:
        assert getattr(gpt_parallel, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gpt_parallel.nonsense  # noqa: B018
