"""The whole daemon, as its users start it."""
