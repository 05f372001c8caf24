"""The house rules on who may import whom, read from the source."""

import ast
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "gpt_parallel"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}
# Which modules a room may import, beside its own; a room stands for all that is in it.
MAY_IMPORT = {
    "base": (),
    "schema": ("base.errors",),
    "layout": ("schema", "base.errors", "base.suggestions"),
    "engine": ("schema", "layout", "base.atomic_files", "base.host", "base.warning_filters", "version"),
    "judge": ("schema", "engine.pipe", "engine.process.worker", "engine.model.random_weights"),
    "launch": ("schema", "layout", "base", "version"),
    "inputs": ("schema", "layout", "launch.devices", "launch.cluster.command", "base"),
    "report": ("schema", "base"),
    "bench": ("schema", "layout", "launch", "inputs", "report", "base", "version"),
    "pytest_plugin": ("schema", "layout", "launch", "inputs", "report", "bench", "base", "version"),
    "cli": ("schema", "layout", "launch", "inputs", "report", "bench", "pytest_plugin.bench", "base", "version"),
}
HAVE_TORCH = ("engine", "judge")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def starts_with(name, package):
    return name == package or name.startswith(package + ".")


def own_imports(path):
    """The package's modules that a file imports, those for type checking too."""
    for name in imported_modules(path):
        if starts_with(name, "gpt_parallel"):
            name = name.removeprefix("gpt_parallel").removeprefix(".")
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_room_imports_only_what_it_may(path):
    room, *rest = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imported_modules(path):
        assert room == "judge" or not starts_with(name, "transformers"), name
        assert room in HAVE_TORCH or not starts_with(name, "torch"), name
    if rest:
        for name in own_imports(path):
            assert any(starts_with(name, other) for other in (room, *MAY_IMPORT[room])), name


def test_files_import_each_other_in_no_circle():
    """Those for type checking count."""
    waits_for = {name: set(own_imports(path)) - {name} for name, path in MODULES.items()}
    while ready := {name for name, others in waits_for.items() if not others & waits_for.keys()}:
        for name in ready:
            del waits_for[name]

    assert waits_for == {}


def test_the_top_of_the_package_is_small():
    entries = [entry for entry in PACKAGE.iterdir() if not entry.name.startswith(("__pycache__", "."))]

    assert {entry.name for entry in entries if entry.suffix == ".py"} == {"__init__.py", "__main__.py", "version.py"}
    assert {entry.name for entry in entries if entry.is_dir()} == {*MAY_IMPORT}


def test_files_and_functions_are_short():
    """At most 300 lines a file, 60 a function."""
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


def test_the_parent_side_brings_in_no_torch():
    names = ("bench.suite", "pytest_plugin.plugin", "cli", "bench.session_record")
    modules = [f"gpt_parallel.{name}" for name in names]
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
