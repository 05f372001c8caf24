"""The values that cross processes or are saved: frozen pydantic models without I/O."""
