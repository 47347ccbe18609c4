"""Programs that drop files and servers that take them, none of which was written here; `make test-compat`."""
