"""Secrets by name: what their messages hold, those of the bootstrap, and those that a control plane brings (SDS).

However many refer to a secret of a control plane, it is watched, read and checked once, and its material is shared. The
bytes of a private key are kept by nobody but OpenSSL.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret as SecretMessage

from meshproxy.config.config_source import ConfigSource
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.datasource import FileStamp, ReadFile, file_stamp, load_data_source
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.generic_secret import GenericSecret, read_generic_secret
from meshproxy.config.subscription import SECRET_TYPE, InitTarget, ResourceWatcher, Subscription
from meshproxy.config.tls_material import MaterialBuilder, digest_of
from meshproxy.net.dispatcher import Task
from meshproxy.net.slices import in_slices
from meshproxy.net.timers import CallTimer
from meshproxy.observe.tls_stats import SecretStats
from meshproxy.tls import openssl
from meshproxy.tls.material import LoadedCertificate, TlsConfigError, load_authorities
from meshproxy.tls.options import ValidationOptions
from meshproxy.tls.validity import untimely

_log: Final = logging.getLogger("meshproxy.config")

# What a secret may hold: the names of its fields.
CERTIFICATE: Final = "tls_certificate"
VALIDATION: Final = "validation_context"
TICKET_KEYS: Final = "session_ticket_keys"
GENERIC: Final = "generic_secret"
_KINDS: Final = (CERTIFICATE, VALIDATION, TICKET_KEYS, GENERIC)

Material = LoadedCertificate | ValidationOptions | tuple[bytes, ...] | GenericSecret

_MAX_BYTES: Final = 1024 * 1024  # of one file or field: more would hold up the loop while it is read
_LOOK_MS: Final = 500.0
_STRIDE: Final = 16  # references that hear of an update in one step: a cluster may become active by it
_UNAVAILABLE: Final = "is not possible with this build of Python"


def read_secret(
    message: Any,
    kind: str,
    path: str,
    errors: ConfigErrors,
    load: Callable[[Any, str], bytes | None],
    now: float | None = None,
) -> Generator[None, None, Material | None]:
    """What a Secret message holds, checked: the key belongs to the certificate, the authorities can be read, and with
    `now` (Unix time), all is valid then. None with errors, which tell nothing of what it holds. In steps of about a
    millisecond."""
    held = message.WhichOneof("type")
    if held != kind:
        errors.add(child(path, held or kind), f"a {kind} is what is asked for")
        return None
    if kind != GENERIC and not openssl.AVAILABLE:
        errors.add(child(path, kind), _UNAVAILABLE)
        return None
    builder = MaterialBuilder(path, errors, load)
    try:
        material = yield from _read(builder, message, kind, now)
        return None if builder.failed else material
    except TlsConfigError as error:
        for field, reason in error.problems:
            builder.error(field, reason)
        return None


def _read(
    builder: MaterialBuilder, message: Any, kind: str, now: float | None
) -> Generator[None, None, Material | None]:
    if kind == CERTIFICATE:
        options = builder.certificate(message.tls_certificate, kind)
        return None if builder.failed else _certificate(LoadedCertificate(options, message.name), builder, now)
    if kind == VALIDATION:
        validation = builder.validation(message.validation_context, kind)
        return None if builder.failed else (yield from loaded(validation, message.name, now))
    if kind == GENERIC:
        return read_generic_secret(builder, message.generic_secret, kind)
    return builder.ticket_keys(message.session_ticket_keys, kind)


def _certificate(certificate: LoadedCertificate, builder: MaterialBuilder, now: float | None) -> LoadedCertificate:
    reason = "" if now is None else untimely(certificate.info.certificate, now)
    if reason:
        builder.error(f"{CERTIFICATE}.certificate_chain", reason)
    return certificate


def loaded(
    validation: ValidationOptions, name: str = "", now: float | None = None
) -> Generator[None, None, ValidationOptions]:
    """With its authorities in OpenSSL's hands, in steps; with `now`, somebody is trusted then. Raises
    TlsConfigError."""
    if not (validation.has_authorities or validation.crl):
        return validation
    authorities = yield from load_authorities(validation, name, now)
    return replace(validation, authorities=authorities)


# -- those of the bootstrap


class StaticSecret:
    """One of `static_resources.secrets`; `files` are those that it was read of."""

    def __init__(self, material: Material, files: dict[str, ReadFile]) -> None:
        self.material = material
        self.files = files


class StaticSecrets:
    """`static_resources.secrets`; `digest` tells whether they are the same."""

    def __init__(self) -> None:
        self.digest: bytes = digest_of(())
        self._known: dict[tuple[str, str], StaticSecret | None] = {}

    def add(self, kind: str, name: str, secret: StaticSecret | None) -> bool:
        """False when there is one of this kind and name already. None: it is there, and no good."""
        if (kind, name) in self._known:
            return False
        self._known[kind, name] = secret
        return True

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._known

    def find(self, kind: str, name: str) -> StaticSecret | None:
        return self._known.get((kind, name))


def build_static_secrets(messages: Any, path: str, context: BuildContext) -> Generator[None, None, StaticSecrets]:
    """The field `secrets` at `path`, in steps of about a millisecond. All errors go to the context."""
    secrets = StaticSecrets()
    secrets.digest = digest_of(each.SerializeToString(deterministic=True) for each in messages)
    for index, message in enumerate(messages):
        where = item(path, "secrets", index)
        kind = message.WhichOneof("type")
        if kind not in _KINDS:
            continue  # the table of fields says so
        part = context.for_part(f"secrets.{message.name}", context.errors)
        material = yield from read_secret(message, kind, where, context.errors, part.load)
        if not secrets.add(kind, message.name, None if material is None else StaticSecret(material, part.files)):
            context.errors.add(child(where, "name"), "the name is used twice")
        yield
    return secrets


def static_secret(context: BuildContext, kind: str, name: str, path: str) -> Material | None:
    """What the bootstrap has under this name, which stands at `path`; None, with an error, where there is nothing."""
    known: StaticSecrets | None = context.static_secrets
    if known is None or (kind, name) not in known:
        context.errors.add(path, f"no {kind} of this name stands in static_resources.secrets")
        return None
    found = known.find(kind, name)
    if found is None:
        context.errors.add(path, "this secret of static_resources.secrets is no good")
        return None
    context.files.update(found.files)
    return found.material


# -- those of a control plane


class SecretUser(Protocol):
    """Who refers to secrets: a TLS context, a filter."""

    def refusal(self, material: Material) -> str:
        """Why it cannot use this; "" if it can."""
        ...

    def on_secret(self, material: Material) -> None:
        """A reference of its has it now."""
        ...


class SecretReference(InitTarget):
    """One reference to a secret: what waits for it is ready when it is there, or is not going to come.

    `material` is what to use now; once it is there it stays until another takes its place, even when the control plane
    takes the secret away: as in Envoy, who has a certificate goes on with it.
    """

    def __init__(self, kind: str, name: str, source: ConfigSource, context: BuildContext) -> None:
        super().__init__(f"SdsApi {name}")
        self.kind = kind
        self.secret_name = name
        self.source = source
        self.stats = context.scope(f"sds.{name}.", SecretStats)
        self.material: Material | None = None
        self.user: SecretUser | None = None
        self._services = context.services
        self._secret: Secret | None = None

    def begin(self) -> None:
        assert self._services is not None
        self._secret = secret_store(self._services).secret(self)
        self._secret.add(self)

    def stop(self) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            secret.remove(self)

    def refusal(self, material: Material) -> str:
        return "" if self.user is None else self.user.refusal(material)

    def take(self, material: Material) -> None:
        """It comes, or is another one than before."""
        self.material = material
        if self.user is not None:
            self.user.on_secret(material)
        self.set_ready()


class SecretStore:
    """The secrets of a control plane that this process refers to."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._secrets: dict[tuple[str, bytes, float, str], Secret] = {}

    def secret(self, reference: SecretReference) -> Secret:
        """The one that is referred to; watched from now on, if it was not."""
        source, name = reference.source, reference.secret_name
        key = (reference.kind, source.key, source.initial_fetch_timeout_ms, name)
        found = self._secrets.get(key)
        if found is None:
            found = self._secrets[key] = Secret(self._services, reference.kind, reference.stats)
            found.on_unused = functools.partial(self._secrets.pop, key)
            found.subscription = self._services.subscriptions.watch(source, SECRET_TYPE, name, found)
        return found


def secret_store(services: Services) -> SecretStore:
    """That of a process."""
    if services.secrets is None:
        services.secrets = SecretStore(services)
    store: SecretStore = services.secrets
    return store


class Secret(ResourceWatcher):
    """A secret of a control plane, for all who refer to it."""

    def __init__(self, services: Services, kind: str, stats: SecretStats) -> None:
        self.stats = stats
        self.subscription: Subscription | None = None
        self.on_unused: Callable[[], object] = _nothing  # nobody refers to it any more
        self._kind = kind
        self._dispatcher = services.dispatcher
        self._references: dict[SecretReference, None] = {}
        self._material: Material | None = None
        self._digest: bytes = b""  # of all that the material was made of
        self._settled: bool = False  # something came, or will not
        self._updating: bool = False
        self._reading: Task[Any] | None = None  # of its files, once more
        self._message: bytes = b""  # kept where it names files, to read them again
        self._stamps: dict[str, FileStamp | None] = {}  # of these files, as they were read
        self._seen: dict[str, FileStamp | None] = {}  # a while ago
        self._timer = CallTimer(self.look_at_files)

    # -- who refers to it

    def add(self, reference: SecretReference) -> None:
        self._references[reference] = None
        if self._material is not None:
            reason = reference.refusal(self._material)
            if reason:
                _log.warning("a secret cannot be used by one that refers to it: %s", reason)
            else:
                reference.take(self._material)
        if self._settled:
            reference.set_ready()

    def remove(self, reference: SecretReference) -> None:
        del self._references[reference]
        if not self._references:
            self._stop_reading()
            self._timer.disarm()
            self.on_unused()
            if self.subscription is not None:
                self.subscription.close()

    # -- what comes

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        self._stop_reading()
        self._updating = True
        try:
            stamps = yield from self._take(message, errors)
        finally:
            self._updating = False
        if not errors:
            self._message = message.SerializeToString() if stamps else b""
            self._watch(stamps)
        self._settle()

    def refused(self) -> None:
        self._settle()

    def missing(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Whoever waits goes on: without it, where there is none yet."""
        self._settled = True
        for reference in list(self._references):
            reference.set_ready()

    def _take(self, message: Any, errors: ConfigErrors) -> Generator[None, None, dict[str, FileStamp | None]]:
        """Read it, ask all who would use it, and only then hand it over. Returns the files that it names."""
        sources = _Sources(message, errors)
        material = yield from read_secret(message, self._kind, "", errors, sources.load, time.time())
        digest = sources.digest()
        yield
        if material is None or digest == self._digest:
            return sources.stamps
        yield from self._ask(material, errors)
        if not errors:
            self._material, self._digest = material, digest
            for index, reference in enumerate(list(self._references)):
                if reference in self._references:
                    reference.take(material)
                if index % _STRIDE == _STRIDE - 1:
                    yield
        return sources.stamps

    def _ask(self, material: Material, errors: ConfigErrors) -> Iterator[None]:
        """Whether all can use it."""
        reasons: set[str] = set()
        for index, reference in enumerate(list(self._references)):
            reasons.add(reference.refusal(material))
            if index % _STRIDE == _STRIDE - 1:
                yield
        for reason in reasons - {""}:
            errors.add(self._kind, reason)

    # -- files that it names

    def _watch(self, stamps: dict[str, FileStamp | None]) -> None:
        self._stamps = self._seen = stamps
        self._timer.disarm()
        self._arm()

    def _arm(self) -> None:
        if self._stamps and self._references:
            self._dispatcher.timers.arm(self._timer, _LOOK_MS)

    def look_at_files(self) -> None:
        """Read them again when they hold something else, and have been quiet for a while: no update tells of it."""
        try:
            now = {name: file_stamp(name) for name in self._stamps}
            is_other = any(now[name] not in (None, was) for name, was in self._stamps.items())
            if is_other and now == self._seen and not self._busy:
                self._reading = self._dispatcher.spawn(self._read_again(), "files of a secret")
                self._stamps = now
            self._seen = now
        finally:
            self._arm()

    @property
    def _busy(self) -> bool:
        return self._updating or (self._reading is not None and not self._reading.done())

    def _stop_reading(self) -> None:
        """What comes now counts. If it is no good, the files are read once more, and all are told of them."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            self._stamps = dict.fromkeys(self._stamps)
            self._digest = b""

    async def _read_again(self) -> None:
        errors = ConfigErrors()
        await in_slices(self._take(SecretMessage.FromString(self._message), errors))
        if errors:
            self.stats.key_rotation_failed += 1
            _log.warning("the files of a secret cannot be taken: %s", errors)


class _Sources:
    """Reads the DataSources of a secret: remembers which files there were, but not what they held."""

    def __init__(self, message: Any, errors: ConfigErrors) -> None:
        self.stamps: dict[str, FileStamp | None] = {}
        self._errors = errors
        self._hash = hashlib.sha256(message.SerializeToString(deterministic=True))

    def load(self, source: Any, path: str) -> bytes | None:
        if source.WhichOneof("specifier") == "filename":
            self.stamps.setdefault(source.filename, file_stamp(source.filename))
        data = load_data_source(source, path, self._errors, _MAX_BYTES)
        self._hash.update(b"%d:%b" % (len(data or b""), data or b""))
        return data

    def digest(self) -> bytes:
        """Of the message, and of all that was read."""
        return self._hash.digest()


def _nothing() -> None:
    """Nobody is to be told."""
