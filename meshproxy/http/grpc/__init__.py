"""gRPC inside HTTP: messages in bodies, and the calls that streams are."""
