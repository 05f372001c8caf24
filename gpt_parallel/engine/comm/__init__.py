"""Communication between ranks: collectives and the transports behind them."""
