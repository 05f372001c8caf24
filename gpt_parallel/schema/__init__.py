"""Every value that crosses a process or reaches a disk: frozen pydantic models, no input or output."""
