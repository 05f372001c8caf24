"""The processes of ranks: the server they are forked from, and workers started locally or by a launcher."""
