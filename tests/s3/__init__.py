"""Requests to S3, their answers, and what is made of them."""
