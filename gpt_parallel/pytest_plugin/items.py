"""Tells generation cases from pytest's other items."""

import pytest


def is_case(item: pytest.Item) -> bool:
    """Whether a test uses the fixture that records a case's launches."""
    return "gpt_record" in getattr(item, "fixturenames", ())
