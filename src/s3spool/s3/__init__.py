"""All that speaks to S3; docs/architecture.md says what each module is."""
