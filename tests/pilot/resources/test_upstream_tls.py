"""TLS to the hosts of a service: which server it asks for, and whom it believes."""

from __future__ import annotations

import pytest
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from meshproxy.config.subscription import CLUSTER_TYPE
from meshproxy.pilot.resources.connection_pool import HTTP_OPTIONS
from tests.pilot.resources.support import SHOP_PAGE, mesh_of, resource, snapshot_of

SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 90, name: tcp, protocol: TCP}]
  resolution: DNS
"""
RULE = """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far, namespace: shop}
spec: {host: far.example, trafficPolicy: {tls: {%s}}}
"""
MUTUAL = "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem"


def asked(tls: str, service: str = "", port: int = 80) -> tuple[str, set[str], bool, bool]:
    """The server name, the names that are believed, and whether each of both is the host of the request."""
    mesh = mesh_of(SERVICE + service + RULE % tls)
    cluster = resource(snapshot_of(mesh, SHOP_PAGE), CLUSTER_TYPE, f"outbound|{port}||far.example")
    context = UpstreamTlsContext.FromString(cluster.transport_socket.typed_config.value)
    names = {one.matcher.exact for one in context.common_tls_context.validation_context.match_typed_subject_alt_names}
    options = HttpProtocolOptions.FromString(cluster.typed_extension_protocol_options[HTTP_OPTIONS].value)
    upstream = options.upstream_http_protocol_options
    assert options.HasField("explicit_http_config") == (port == 80)
    return context.sni, names, upstream.auto_sni, upstream.auto_san_validation


@pytest.mark.parametrize("mode", ["mode: SIMPLE", MUTUAL])
def test_without_a_server_name_it_is_the_host_of_the_request(mode: str) -> None:
    assert asked(mode) == ("", set(), True, True)
    assert asked(f"{mode}, subjectAltNames: [b.example]") == ("", {"b.example"}, True, False)
    assert asked(f"{mode}, insecureSkipVerify: true") == ("", set(), True, False)


def test_a_server_name_that_is_given_is_asked_for() -> None:
    assert asked("mode: SIMPLE, sni: a.example") == ("a.example", set(), False, False)


def test_connections_that_are_no_requests_have_no_host() -> None:
    assert asked("mode: SIMPLE", port=90) == ("", set(), False, False)


def test_names_of_the_service_are_believed_where_the_rule_names_none() -> None:
    names = "  subjectAltNames: [own.example]\n"
    assert asked("mode: SIMPLE", names) == ("", {"own.example"}, True, False)
    assert asked("mode: SIMPLE, subjectAltNames: [b.example]", names) == ("", {"b.example"}, True, False)
    assert asked("mode: SIMPLE, insecureSkipVerify: true", names) == ("", set(), True, False)
