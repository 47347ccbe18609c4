"""The running service: main, supervisor, the components and how they are built, watch manager, liveness, reload."""
