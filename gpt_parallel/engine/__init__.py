"""All that runs inside a rank. The only part of the package that imports torch."""
