"""The installed package on a booted machine: what `make test` cannot see."""
