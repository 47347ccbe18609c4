"""Whose fault a failure is, and when the file is tried again: circuit breaker, concurrency limiter, retry policy."""
