"""Metrics, health and a page over HTTP: the extra `http`."""
