"""The federation itself, free of Flower: the host of clients, the rounds, trials, commits and measurements."""
