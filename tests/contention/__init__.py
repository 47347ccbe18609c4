"""Crowds and contention: whatever the trouble, a good file goes through in seconds. See docs/contention.md."""
