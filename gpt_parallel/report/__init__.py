"""Saved pytest-benchmark JSON turned into tables, charts, comparisons and verdicts."""
