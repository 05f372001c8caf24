"""How ranks talk: transports, collectives, process groups, shared memory."""
