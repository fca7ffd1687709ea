"""Helpers shared by the tests: a raw HTTP/1.1 downstream, a scripted upstream, and a runner for proxy processes.

They parse on purpose with their own few lines, not with the product's codec, so that no mistake can hide on both sides.
"""
