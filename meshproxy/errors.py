"""The errors that cross module edges: whose fault it is, whether a retry is safe, and why.

Inside a request errors travel as values (DESIGN section 7): codecs never raise from `receive_data`, pools report
by callback. `ConfigError`s are collected, all of them, each with its path.
"""

from __future__ import annotations

from typing import Final

# What ended a stream before its time: the `reason` of every reset, on HTTP/1 and HTTP/2 alike (Envoy's
# StreamResetReason).
RESET_LOCAL: Final = 1  # we gave the stream up (a timeout, a local reply, a downstream that left)
RESET_REMOTE: Final = 2  # the peer reset the stream (HTTP/2)
RESET_REMOTE_REFUSED: Final = 3  # the peer refused the stream and has not looked at it (HTTP/2)
RESET_CONNECT_FAILURE: Final = 4  # no connection to the host could be made
RESET_CONNECT_TIMEOUT: Final = 5  # … within the connect timeout
RESET_TERMINATION: Final = 6  # the connection ended under the stream
RESET_OVERFLOW: Final = 7  # a circuit breaker is open
RESET_PROTOCOL_ERROR: Final = 8  # the peer broke the protocol
RESET_LOCAL_CONNECT_FAILURE: Final = 9  # a connection could not even be begun: its source address is not to be had


class MeshProxyError(Exception):
    """Base of every error of ours."""


class ConfigError(MeshProxyError):
    """A configuration that cannot be honoured: `path` names the field, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


class HookTimeoutError(MeshProxyError):
    """A filter's hook waited longer than it may."""


class MissingSecretError(MeshProxyError):
    """A secret that a filter asks for is not there, or none of those that its configuration names."""


class ProtocolError(MeshProxyError):
    """A peer broke its protocol.

    `status` is the local reply that an HTTP/1 downstream gets (RFC 9112), `details` Envoy's response-code details.
    """

    def __init__(self, status: int, details: str, reason: str = "") -> None:
        super().__init__(reason or details)
        self.status = status
        self.details = details
        self.reason = reason or details
