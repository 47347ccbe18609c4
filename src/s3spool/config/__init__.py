"""The configuration: schema, values, files, environment, and whom a file may be believed."""
