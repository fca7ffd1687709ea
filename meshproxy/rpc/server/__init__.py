"""gRPC servers by one contract: our own, which sees who is at the other end of a Unix socket, and grpcio's."""
