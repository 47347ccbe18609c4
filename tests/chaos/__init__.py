"""The real daemon among kills, faults and restless writers, at random from a seed; `make test-chaos`, `make soak`."""
