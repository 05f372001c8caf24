"""Verified, timed distributed GPT-2 generation, driven from pytest.

Importing the package stays cheap (no torch, no pydantic): the pytest plugin is loaded at every pytest start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt_parallel.version import __version__ as __version__

if TYPE_CHECKING:
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.bench.result_file import load_result
    from gpt_parallel.bench.suite import Suite
    from gpt_parallel.inputs.models import register_model
    from gpt_parallel.inputs.settings import Settings
    from gpt_parallel.layout.strategies import register_strategy
    from gpt_parallel.schema.architecture import Architecture
    from gpt_parallel.schema.result import RunResult
    from gpt_parallel.schema.run import MeshSpec, RunSpec

_HOME_OF = {
    "Architecture": "gpt_parallel.schema.architecture",
    "MeshSpec": "gpt_parallel.schema.run",
    "RunResult": "gpt_parallel.schema.result",
    "RunSpec": "gpt_parallel.schema.run",
    "Settings": "gpt_parallel.inputs.settings",
    "SpecError": "gpt_parallel.base.errors",
    "Suite": "gpt_parallel.bench.suite",
    "load_result": "gpt_parallel.bench.result_file",
    "register_model": "gpt_parallel.inputs.models",
    "register_strategy": "gpt_parallel.layout.strategies",
}

__all__ = [
    "Architecture",
    "MeshSpec",
    "RunResult",
    "RunSpec",
    "Settings",
    "SpecError",
    "Suite",
    "load_result",
    "register_model",
    "register_strategy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
