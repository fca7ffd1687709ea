"""The demonstration: a canary release with real clients, watched live (`meshproxy demo`).

It is a client of the real commands: a pilot with the documents of `examples/mesh`, sidecars and applications are child
processes, and everything it claims is seen from outside: in the answers that clients got, and in what pilot and
sidecars say of themselves.
"""
