"""`GrpcService.GoogleGrpc`: a server that grpcio asks, by an address of its own. Read without grpcio, which is imported
only when the first call is made."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from envoy.config.grpc_credential.v3 import file_based_metadata_pb2

from meshproxy.codec.headers import Field
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.registry import Registry
from meshproxy.http.grpc.metadata import FileContent

INSECURE: Final = 0
LOCAL: Final = 1  # loopback and Unix sockets, which need no encryption
TLS: Final = 2

_FACTORIES: Final = ("", "envoy.grpc_credentials.default", "envoy.grpc_credentials.file_based_metadata")


class CallToken:
    """A credential that each call brings, in a header: `prefix` and a constant, or what a file holds."""

    def __init__(self, name: bytes, prefix: bytes, file: FileContent | None = None) -> None:
        self._name = name
        self._prefix = prefix
        self._file = file

    def field(self) -> Field:
        return self._name, self._prefix if self._file is None else self._prefix + self._file.value()


class GoogleTarget:
    """Where grpcio connects to, and how. None for certificates: the system's roots, no certificate of ours."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.security: int = INSECURE
        self.root_certs: bytes | None = None
        self.private_key: bytes | None = None
        self.cert_chain: bytes | None = None
        self.tokens: list[CallToken] = []
        self.channel_args: list[tuple[str, Any]] = []


def build_google_target(message: Any, path: str, context: BuildContext) -> GoogleTarget:
    """Errors go to the context."""
    target = GoogleTarget(message.target_uri)
    if find_spec("grpc") is None:
        context.errors.add(path, "needs grpcio, which is not installed (the extra `grpc` of meshproxy)")
    if message.credentials_factory_name not in _FACTORIES:
        context.errors.add(
            child(path, "credentials_factory_name"),
            f"{message.credentials_factory_name!r} is not supported (supported: {', '.join(_FACTORIES[1:])})",
        )
    if message.HasField("channel_credentials"):
        _build_channel(message.channel_credentials, child(path, "channel_credentials"), context, target)
    for index, credentials in enumerate(message.call_credentials):
        token = _build_token(credentials, item(path, "call_credentials", index), context)
        if token is not None:
            target.tokens.append(token)
    if message.call_credentials and target.security == INSECURE:
        context.errors.add(child(path, "call_credentials"), "need ssl_credentials or local_credentials beside them")
    for name, value in sorted(message.channel_args.args.items()):
        kind = value.WhichOneof("value_specifier")
        target.channel_args.append((name, getattr(value, kind or "string_value")))
    return target


def _build_channel(message: Any, path: str, context: BuildContext, target: GoogleTarget) -> None:
    kind = message.WhichOneof("credential_specifier")
    if kind == "local_credentials":
        target.security = LOCAL
    elif kind == "ssl_credentials":
        target.security = TLS
        files, where = message.ssl_credentials, child(path, kind)
        target.root_certs = _load(files, "root_certs", where, context)
        target.private_key = _load(files, "private_key", where, context)
        target.cert_chain = _load(files, "cert_chain", where, context)
        if files.HasField("private_key") != files.HasField("cert_chain"):
            context.errors.add(where, "private_key and cert_chain go together")


def _load(message: Any, field: str, path: str, context: BuildContext) -> bytes | None:
    return context.load(getattr(message, field), child(path, field)) if message.HasField(field) else None


def _build_token(message: Any, path: str, context: BuildContext) -> CallToken | None:
    """None for the kinds that the tables of fields refuse, and with an error."""
    kind = message.WhichOneof("credential_specifier")
    if kind == "access_token":
        return CallToken(b"authorization", b"Bearer " + message.access_token.encode())
    if kind != "from_plugin":
        return None
    where = child(child(path, kind), "typed_config")
    found = PLUGINS.find(message.from_plugin.typed_config, where, context)
    return None if found is None else _of_file(found[0], where, context)


def _of_file(message: Any, path: str, context: BuildContext) -> CallToken | None:
    """A FileBasedMetadataConfig."""
    name = (message.header_key.lower() or "authorization").encode()
    prefix, source = message.header_prefix.encode(), message.secret_data
    if source.WhichOneof("specifier") != "filename":
        constant = context.load(source, child(path, "secret_data"))
        return None if constant is None else CallToken(name, prefix + constant)
    try:
        return CallToken(name, prefix, FileContent(source.filename))
    except (OSError, ValueError) as error:
        context.errors.add(child(path, "secret_data.filename"), str(error))
        return None


PLUGINS: Final[Registry[bool]] = Registry("call credential")
PLUGINS.register(file_based_metadata_pb2.FileBasedMetadataConfig, True)
