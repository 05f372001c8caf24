"""What knows nothing of models or ranks: errors, files, escaping, redaction, signals, this host."""
