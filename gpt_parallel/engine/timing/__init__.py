"""When things happened in a rank, where its time went, and what its device can do."""
