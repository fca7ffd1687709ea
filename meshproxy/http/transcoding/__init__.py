"""Between JSON over HTTP and gRPC, by the rules of google.api.http."""
