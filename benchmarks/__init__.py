"""s3spool beside its peers: `python -m benchmarks`. See docs/performance.md."""
