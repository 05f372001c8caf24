"""The version, apart so that nothing has to import the package for it."""

__version__ = "0.1.0"
