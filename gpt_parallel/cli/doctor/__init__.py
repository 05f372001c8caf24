"""`gpt-parallel doctor`: facts are gathered in one place, judged in another, and told in a third."""
