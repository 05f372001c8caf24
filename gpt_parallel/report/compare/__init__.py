"""Runs side by side, and gates on them."""
