"""The demonstration, and the example that it shows."""
