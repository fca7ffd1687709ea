"""The Common Expression Language: trees of expressions, compiled when configuration is read."""
