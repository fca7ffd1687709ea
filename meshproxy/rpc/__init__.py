"""gRPC clients: our own, on the clusters of the process (as Envoy's `envoy_grpc`), and one on grpcio.

Whoever calls knows them by `http.grpc.client`.
"""
