"""Runs cases, verifies and summarises them, and saves them."""
