"""The demonstration: a canary release with real clients, watched live (`meshproxy demo`).

It is a client of the real command: the proxy is a child process, configured by `examples/canary/envoy.yaml`, and
everything it claims is seen from outside, in the answers that clients got and in the proxy's own statistics.
"""
