"""The build of the installed torch, found without importing it: an import costs seconds, and memory in the parent."""

import ast
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple


class TorchBuild(NamedTuple):
    """A build of torch; `release` is the CUDA or ROCm release that it is built for, such as "13.0"."""

    version: str
    kind: Literal["CPU", "CUDA", "ROCm", "unknown"]
    release: str | None = None

    @property
    def cuda(self) -> tuple[int, int] | None:
        """The CUDA release as numbers; None for other builds, or if it is not of that form."""
        major, _, minor = (self.release or "").partition(".")
        if self.kind == "CUDA" and major.isdigit() and minor[:1].isdigit():
            return int(major), int(minor.split(".")[0])
        return None

    def __str__(self) -> str:
        return f"{self.kind} {self.release}" if self.release else self.kind


def torch_build() -> TorchBuild | None:
    """Read the build from torch's own `version.py`; None if torch is not installed.

    A wheel's metadata is not enough: the version of a CUDA build may end in +cu130 or have no suffix at all. It is used
    only if that file cannot be read.
    """
    found = _constants()
    if isinstance(number := found.get("__version__"), str) and "cuda" in found:
        for kind, names in (("CUDA", ("cuda",)), ("ROCm", ("hip", "rocm"))):
            for name in names:
                if isinstance(release := found.get(name), str):
                    return TorchBuild(number, kind, release)  # type: ignore[arg-type]
        return TorchBuild(number, "CPU")
    try:
        number = version("torch")
    except PackageNotFoundError:
        return None
    return TorchBuild(number, "CPU" if number.endswith("+cpu") else "unknown")


def _constants() -> dict[str, object]:
    """The constants in torch/version.py by name; none if there is no such file, or it is not valid Python."""
    try:
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            return {}
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value.value for target in targets if isinstance(target, ast.Name)}
    return found
