"""The benchmark: what a request costs here, next to the real Envoy and nginx, measured in one interleaved run."""
