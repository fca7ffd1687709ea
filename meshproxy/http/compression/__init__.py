"""Content codings (RFC 9110 section 8.4.1): the libraries that do them, and which one a client accepts."""
