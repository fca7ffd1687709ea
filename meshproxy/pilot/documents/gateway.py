"""`networking.istio.io` Gateway: what a proxy at the edge listens to."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from meshproxy.pilot.documents.common import AGENTS_SECRETS, TLS_PROTOCOLS, plain_protocol, protocol
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import Labels, Port, dns_label, is_ip, not_empty, wildcard_host_or_ip
from meshproxy.pilot.documents.spec import Refused, spec

TlsVersion = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


def server_host(value: str) -> str | None:
    """A host, `*`, or `namespace/host` (the namespace may be `*` or `.`), from where VirtualServices may bind."""
    namespace, slash, host = value.rpartition("/")
    if slash and namespace not in ("*", ".") and dns_label(namespace) is not None:
        return f'"{namespace}" is neither "*", "." nor the name of a namespace'
    return wildcard_host_or_ip(host)


def bind_address(value: str) -> str | None:
    return None if is_ip(value) else f'"{value}" is no IP address'


@spec
class GatewayPort:
    number: Port
    protocol: Annotated[str, protocol]
    name: str
    REFUSED: ClassVar[Refused] = {"targetPort": "is deprecated and has no effect: leave it out"}


@spec
class ServerTLSSettings:
    https_redirect: bool = False
    mode: Literal["PASSTHROUGH", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] = "PASSTHROUGH"
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    ca_crl: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    verify_certificate_spki: tuple[str, ...] = ()
    verify_certificate_hash: tuple[str, ...] = ()
    min_protocol_version: TlsVersion = "TLS_AUTO"
    max_protocol_version: TlsVersion = "TLS_AUTO"
    cipher_suites: tuple[str, ...] = ()
    REFUSED: ClassVar[Refused] = {
        "credentialNames": "several certificates of one server are not supported yet: write credentialName",
        "tlsCertificates": "several certificates of one server are not supported yet: write serverCertificate",
        "caCertCredentialName": "is not supported yet: the secret of credentialName has the CA too",
    }

    @property
    def needs_secrets(self) -> bool:
        return self.mode == "ISTIO_MUTUAL" or (self.mode != "PASSTHROUGH" and bool(self.credential_name))

    def check(self, at: At) -> None:
        self._check_mutual(at)
        if self.needs_secrets and self.mode != "ISTIO_MUTUAL":
            (at / "credentialName").warn(AGENTS_SECRETS)
        if self.mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL") and not self.credential_name:
            for step, value in (("serverCertificate", self.server_certificate), ("privateKey", self.private_key)):
                if not value:
                    (at / step).error(f"is required with {self.mode}, or credentialName")
        if self.credential_name and (self.server_certificate or self.private_key or self.ca_certificates):
            (at / "credentialName").error("excludes certificates in files")
        for index, suite in enumerate(self.cipher_suites):
            if suite in self.cipher_suites[:index]:
                (at / "cipherSuites" / index).error(f'"{suite}" is given twice')

    def _check_mutual(self, at: At) -> None:
        if self.mode in ("MUTUAL", "OPTIONAL_MUTUAL"):
            if not self.credential_name and not self.ca_certificates:
                (at / "caCertificates").error(f"is required with {self.mode}, or credentialName")
        if self.mode == "ISTIO_MUTUAL":
            for step, value in (
                ("serverCertificate", self.server_certificate),
                ("privateKey", self.private_key),
                ("caCertificates", self.ca_certificates),
                ("credentialName", self.credential_name),
            ):
                if value:
                    (at / step).error("must not be set with ISTIO_MUTUAL, whose certificates are the mesh's own")


@spec
class Server:
    port: GatewayPort
    hosts: Annotated[tuple[Annotated[str, server_host], ...], not_empty]
    bind: Annotated[str, bind_address] | None = None
    tls: ServerTLSSettings | None = None
    name: str = ""
    REFUSED: ClassVar[Refused] = {"defaultEndpoint": "is not implemented, by Istio neither"}

    def check(self, at: At) -> None:
        secure = plain_protocol(self.port.protocol) in TLS_PROTOCOLS
        if secure and self.tls is None:
            (at / "tls").error(f"is required with the protocol {self.port.protocol}")
        if not secure and self.tls is not None and not self.tls.https_redirect:
            (at / "tls").error(f"excludes the protocol {self.port.protocol}, but for httpsRedirect")
        if secure and self.tls is not None and self.tls.https_redirect:
            (at / "tls" / "httpsRedirect").error("is for plain HTTP only")


@spec
class Gateway:
    """The proxies with all labels of `selector` serve it."""

    servers: Annotated[tuple[Server, ...], not_empty]
    selector: Labels = ()

    def check(self, at: At) -> None:
        for index, server in enumerate(self.servers):
            if server.name and any(other.name == server.name for other in self.servers[:index]):
                (at / "servers" / index / "name").error(f'"{server.name}" is given twice')
