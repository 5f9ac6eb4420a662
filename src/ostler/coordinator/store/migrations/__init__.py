"""Forward-only migrations; a revision is the number of the schema that it makes, four digits."""
