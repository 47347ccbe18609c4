"""The configuration: its keys (`schema`), where values come from (`loader`), and which files are trusted (`trust`)."""
