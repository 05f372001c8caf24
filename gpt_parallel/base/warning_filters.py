"""Warnings of other packages do not end a run where the user's filters make warnings errors.

`-W error` and PYTHONWARNINGS=error are meant for the user's own tests. What torch or matplotlib say as they are
imported is printed then, and never raised.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def print_warnings() -> None:
    """Print warnings in this process that would be errors."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print warnings that would be errors in this block; also a decorator."""
    with warnings.catch_warnings():
        print_warnings()
        yield
