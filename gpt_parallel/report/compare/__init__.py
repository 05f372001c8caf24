"""Comparisons of runs, and gates."""
