"""The way of a file, one room a stage; docs/architecture.md says what each module is."""
