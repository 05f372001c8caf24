"""Reports from saved pytest-benchmark JSON: tables, charts, comparisons and gates."""
