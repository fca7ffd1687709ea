"""The agent of a pod: it makes the key, has it certified, and serves the sidecar its secrets over a Unix socket."""
