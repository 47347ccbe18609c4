"""Drop files into a folder, find them in S3."""

__version__ = "0.1.0"
