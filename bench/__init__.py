"""The benchmark: what a request costs here, next to other proxies, measured in one interleaved run."""
