"""Structured logs: events, sentences, the log thread, journal and terminal."""
