"""HTTP/1.0 and 1.1 without I/O: `server` and `client` hold the two ends of a connection, the rest is what they share.

httptools validates and splits field lines (`fields`); framing is ours (`framing`, `chunked`, `connection`), so no
opinion of a parser about where a message ends can part from what we forward.
"""
