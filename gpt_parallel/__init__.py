"""Verified, timed distributed GPT-2 generation, driven from pytest.

Importing the package stays cheap (no torch, no pydantic): the pytest plugin is loaded at every pytest start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_parallel.models import register_model
    from gpt_parallel.problems import SpecError
    from gpt_parallel.result import RunResult, load_result
    from gpt_parallel.settings import Settings
    from gpt_parallel.spec import RunSpec
    from gpt_parallel.strategies import register_strategy
    from gpt_parallel.suite import Suite

_HOME_OF = {
    "RunResult": "gpt_parallel.result",
    "RunSpec": "gpt_parallel.spec",
    "Settings": "gpt_parallel.settings",
    "SpecError": "gpt_parallel.problems",
    "Suite": "gpt_parallel.suite",
    "load_result": "gpt_parallel.result",
    "register_model": "gpt_parallel.models",
    "register_strategy": "gpt_parallel.strategies",
}

__all__ = [
    "RunResult",
    "RunSpec",
    "Settings",
    "SpecError",
    "Suite",
    "load_result",
    "register_model",
    "register_strategy",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
