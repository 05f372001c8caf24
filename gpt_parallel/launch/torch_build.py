"""What the installed torch is built for, told without importing it: that costs seconds, and memory in the parent."""

import ast
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple


class TorchBuild(NamedTuple):
    """`release` is the CUDA or ROCm release that it is built for, such as "13.0"."""

    version: str
    kind: Literal["CPU", "CUDA", "ROCm", "unknown"]
    release: str | None = None

    @property
    def cuda(self) -> tuple[int, int] | None:
        """The CUDA release as numbers; None for other builds, or where it is no such number."""
        major, _, minor = (self.release or "").partition(".")
        if self.kind == "CUDA" and major.isdigit() and minor[:1].isdigit():
            return int(major), int(minor.split(".")[0])
        return None

    def __str__(self) -> str:
        return f"{self.kind} {self.release}" if self.release else self.kind


def torch_build() -> TorchBuild | None:
    """By torch's own `version.py`; None where torch is not installed.

    A wheel's metadata do not tell: the version of one that is built for CUDA may end in +cu130 or in nothing at all.
    They are asked only where that file cannot be read.
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
    """The names that torch/version.py gives values; none where there is no such file, or it is not Python."""
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
