"""`python -m gpt_parallel`: the `gpt-parallel` command, where its script is not on the path."""

from gpt_parallel.cli import main

main()
