"""Runs cases, proves them, sums them up and keeps them."""
