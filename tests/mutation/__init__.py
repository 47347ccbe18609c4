"""Mutation testing: `make mutants` changes one place of the source at a time and expects a test to fail."""
