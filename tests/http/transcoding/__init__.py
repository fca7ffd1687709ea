"""Between JSON and gRPC."""
