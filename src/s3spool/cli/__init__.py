"""What a person types: commands, tables, waiting."""
