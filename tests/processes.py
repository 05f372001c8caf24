"""What tests that start commands share."""

import os


def environment(**changes):
    """The user's environment without pytest's own variables: inside a pytest-xdist worker nothing would be timed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | changes
