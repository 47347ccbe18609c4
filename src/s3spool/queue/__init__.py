"""What waits, and what it waits for: items, settling files, the inbox, the parts of large files."""
