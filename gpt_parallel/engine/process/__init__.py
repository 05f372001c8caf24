"""The processes of ranks: the server that is forked, workers here and under a launcher."""
