"""Helpers that know nothing of models or ranks: errors, files, escaping, redaction, signals, this host."""
