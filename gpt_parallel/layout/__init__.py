"""Which rank holds and does what, and what that costs: arithmetic without torch, for launcher and ranks."""
