"""`envoy.filters.http.credential_injector`: gives requests a credential, which is a secret of the proxy's.

A request that has the header already keeps its own, unless `overwrite`; without a credential a request is answered 401,
unless `allow_request_without_credential`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from envoy.extensions.filters.http.credential_injector.v3.credential_injector_pb2 import CredentialInjector
from envoy.extensions.http.injected_credentials.generic.v3.generic_pb2 import Generic

from meshproxy.codec.headers import HeaderMap, bits_of
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.filter_secret import FilterSecret, refer_to_secret
from meshproxy.config.generic_secret import GenericSecret
from meshproxy.config.registry import Registry
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope

_DEFAULT_HEADER: Final = "authorization"
_NOT_INJECTED: Final = b"Failed to inject credential."
_NOT_IN_VALUE: Final = bytes(set(range(0x20)) - {ord("\t")}) + b"\x7f"
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"})


class CredentialInjectorStats(StatsScope):
    """Under `http.<stat_prefix>.credential_injector.`"""

    COUNTERS = ("already_exists", "failed", "injected")

    def __init__(self) -> None:
        super().__init__()
        self.already_exists: int = 0
        self.failed: int = 0
        self.injected: int = 0


class Credential:
    """A header that requests get; its `value` is b"" as long as the secret is not there."""

    def __init__(self, header: bytes) -> None:
        self.header = header
        self.bits: int = bits_of(header)
        self.value: bytes = b""

    def unusable(self, secret: GenericSecret) -> str:
        """Why the secret cannot be the value of the header; "" if it can (RFC 9110 section 5.5)."""
        value = _value_of(secret)
        if not value:
            return "a credential needs a `secret`, and one that is not empty"
        if len(value.translate(None, _NOT_IN_VALUE)) != len(value):
            return "has bytes that cannot stand in a header"
        return ""

    def take(self, secret: GenericSecret) -> None:
        """The secret is there, or another one than before."""
        self.value = _value_of(secret)


def _value_of(secret: GenericSecret) -> bytes:
    """Envoy leaves out the line breaks at the end of a file; spaces at the ends are no part of a header's value."""
    return secret.value.rstrip(b"\r\n").strip(b" \t")


class CredentialInjectorFilter(HttpFilter):
    """Gives each request a Credential."""

    swappable: ClassVar[bool] = True  # that of the newest configuration is the one that hears of its secret

    def __init__(
        self, credential: Credential, overwrite: bool, is_optional: bool, stats: CredentialInjectorStats
    ) -> None:
        self.credential = credential
        self.overwrite = overwrite
        self.is_optional = is_optional
        self.stats = stats

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        credential = self.credential
        if not self.overwrite and headers.get(credential.header) is not None:
            self.stats.already_exists += 1
            return CONTINUE
        if credential.value:
            self.stats.injected += 1
            headers.replace((credential.header, credential.value), credential.bits)
            return CONTINUE
        self.stats.failed += 1
        if self.is_optional:
            return CONTINUE
        stream.send_local_reply(401, _NOT_INJECTED, "failed_to_inject_credential")
        return STOP


# -- building ----------------------------------------------------------------------------------------------------------

# For an extension that may stand in `credential`. None with errors.
CredentialBuilder = Callable[[Any, str, BuildContext], Credential | None]
CREDENTIALS: Final[Registry[CredentialBuilder]] = Registry("credential")


def build_credential_injector(message: Any, path: str, context: BuildContext) -> CredentialInjectorFilter | None:
    where = child(path, "credential.typed_config")
    found = CREDENTIALS.find(message.credential.typed_config, where, context)
    credential = None if found is None else found[1](found[0], where, context)
    if credential is None:
        return None
    stats = context.scope(f"{context.stat_prefix}credential_injector.", CredentialInjectorStats)
    return CredentialInjectorFilter(credential, message.overwrite, message.allow_request_without_credential, stats)


def build_generic(message: Any, path: str, context: BuildContext) -> Credential | None:
    """`envoy.http.injected_credentials.generic`: the secret as it is."""
    header: bytes = (message.header or _DEFAULT_HEADER).lower().encode()
    if header in _FRAMING or header.startswith(b":"):
        context.errors.add(child(path, "header"), "a credential cannot say where a request goes, or how long it is")
        return None
    credential = Credential(header)
    secret = FilterSecret(credential.unusable, credential.take)
    return credential if refer_to_secret(message.credential, child(path, "credential"), context, secret) else None


CREDENTIALS.register(Generic, build_generic)
register_http_filter(CredentialInjector, HttpFilterType(build_credential_injector))
