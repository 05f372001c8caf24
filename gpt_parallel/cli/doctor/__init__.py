"""`gpt-parallel doctor`: gathers facts about the machine, judges them, and prints the findings."""
