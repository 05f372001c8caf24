"""Reads prompts files of many formats, recognised by their shape."""
