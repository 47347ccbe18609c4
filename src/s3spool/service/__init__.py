"""What the daemon says to those who run it; docs/architecture.md says what each module is."""
