"""Mutual TLS as Istio asks for it, with certificates that come over a Unix socket (StreamSecrets): both ends are one
proxy. They come, they change, they are bad, they do not come."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from google.protobuf import json_format

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, SECRET_TYPE
from tests.integration.config import Json, cluster, direct, forward, http2_cluster, listener
from tests.integration.dynamic import ads_bootstrap, assignment, eds_cluster, message
from tests.integration.load import Answer, Load
from tests.integration.proxy import Proxy
from tests.integration.test_control_plane import get
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import Issued, issue, revocation_list, uri, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_RAW = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_INSPECTOR = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_DRAIN = "type.googleapis.com/meshproxy.bootstrap.certificate_drain.v1.CertificateDrain"
_SPIFFE = "spiffe://cluster.local/ns/default/sa/"
_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384 ECDHE-RSA-AES256-GCM-SHA384 ECDHE-ECDSA-AES128-GCM-SHA256 "
    "ECDHE-RSA-AES128-GCM-SHA256 AES256-GCM-SHA384 AES128-GCM-SHA256"
)
REVIEWS = issue("reviews", world().ca, names=uri(f"{_SPIFFE}reviews"))
RENEWED = issue("renewed", world().ca, names=uri(f"{_SPIFFE}reviews"))
RATINGS = issue("ratings", world().ca, names=uri(f"{_SPIFFE}ratings"))


class Agent(ControlPlane):
    """What serves the secrets of a pod, and those alone."""

    socket = ""

    def give(
        self,
        version: str,
        issued: Issued,
        authority: Issued | None = None,
        key: Issued | None = None,
        revoked: tuple[Issued, ...] = (),
    ) -> None:
        inline = {"inline_string": issued.pem.decode()}
        secrets = {
            "default": {
                "tls_certificate": {
                    "certificate_chain": inline,
                    "private_key": {"inline_string": (key or issued).key_pem.decode()},
                }
            },
            "ROOTCA": {"validation_context": {"trusted_ca": {"inline_string": (authority or world().ca).pem.decode()}}},
        }
        if revoked:
            revocations = revocation_list(world().ca, *revoked).decode()
            secrets["ROOTCA"]["validation_context"]["crl"] = {"inline_string": revocations}
        made = {name: message(Secret, {"name": name} | held) for name, held in secrets.items()}
        self.set(SECRET_TYPE, made, version)


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        yield plane


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="agent-") as directory:
        async with Agent.start(uds=f"{directory}/socket") as agent:
            agent.socket = f"{directory}/socket"
            yield agent


def sds(name: str, timeout: str = "0s") -> Json:
    """As Istio names a secret."""
    source = {
        "api_type": "GRPC",
        "set_node_on_first_message_only": True,
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    }
    return {
        "name": name,
        "sds_config": {"api_config_source": source, "initial_fetch_timeout": timeout, "resource_api_version": "V3"},
    }


def common(timeout: str, names: Json, *protocols: str) -> Json:
    combined = {
        "default_validation_context": {"match_subject_alt_names": [names]},
        "validation_context_sds_secret_config": sds("ROOTCA", timeout),
    }
    return {
        "alpn_protocols": list(protocols),
        "tls_certificate_sds_secret_configs": [sds("default", timeout)],
        "combined_validation_context": combined,
    }


def inbound(timeout: str = "0s") -> Any:
    """Mutual TLS on its port, as one of the chains of virtualInbound has it."""
    params = {
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
        "cipher_suites": _CIPHERS.split(),
    }
    secure = common(timeout, {"prefix": "spiffe://cluster.local/"}, "istio-peer-exchange", "h2", "http/1.1")
    config = {
        "@type": _TLS + "DownstreamTlsContext",
        "common_tls_context": secure | {"tls_params": params},
        "require_client_certificate": True,
    }
    manager = {
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": True, "dns": True, "uri": True},
    }
    made = listener("inbound", [direct("/", "from inbound")], manager=manager, stat_prefix="inbound")
    chain = made["filter_chains"][0]
    chain["filter_chain_match"] = {"transport_protocol": "tls", "application_protocols": ["istio-http/1.1"]}
    chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": config}
    made["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": _INSPECTOR}}]
    return message(Listener, made)


def outbound(timeout: str = "0s", who: str = "reviews") -> Any:
    """A cluster whose hosts say by their metadata whether they speak mutual TLS."""
    config = {
        "@type": _TLS + "UpstreamTlsContext",
        "common_tls_context": common(timeout, {"exact": f"{_SPIFFE}{who}"}, "istio-http/1.1", "istio", "http/1.1"),
        "sni": "outbound_.80_._.reviews.default.svc.cluster.local",
    }
    matches = [
        {
            "name": "tlsMode-istio",
            "match": {"tlsMode": "istio"},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": config},
        },
        {
            "name": "tlsMode-disabled",
            "match": {},
            "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": _RAW}},
        },
    ]
    return eds_cluster("reviews", transport_socket_matches=matches)


def endpoints(port: int, **labels: str) -> Any:
    made = assignment("reviews", [port])
    made.endpoints[0].lb_endpoints[0].metadata.filter_metadata["envoy.transport_socket_match"].update(labels)
    return made


def pod(plane: ControlPlane, agent: Agent) -> str:
    """The bootstrap of a sidecar: the agent serves its secrets."""
    tree = json.loads(ads_bootstrap(plane.port))
    tree["static_resources"]["clusters"].append(cluster("sds-grpc", agent.socket, **http2_cluster()))
    return json.dumps(tree)


def serve(plane: ControlPlane, timeout: str = "0s", who: str = "reviews") -> None:
    main = message(Listener, listener("main", [forward("/", "reviews")]))
    plane.set(CLUSTER_TYPE, {"reviews": outbound(timeout, who)})
    plane.set(ENDPOINT_TYPE, {"reviews": endpoints(1, tlsMode="istio")})
    plane.set(LISTENER_TYPE, {"main": main, "inbound": inbound(timeout)})


async def point_at_inbound(plane: ControlPlane, proxy: Proxy, version: str = "2", **labels: str) -> None:
    """The cluster's host is the other listener."""
    plane.set(
        ENDPOINT_TYPE, {"reviews": endpoints(proxy.ports["inbound"], **(labels or {"tlsMode": "istio"}))}, version
    )
    await plane.acked(ENDPOINT_TYPE, version)


async def certificates_shown(proxy: Proxy) -> set[int]:
    """The serial numbers of our own certificates."""
    _, text = await proxy.admin("/certs")
    chains = [one for each in json.loads(text)["certificates"] for one in each["cert_chain"]]
    return {int(one["serial_number"], 16) for one in chains}


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_mutual_tls_between_sidecars(plane: ControlPlane, agent: Agent, workers: str) -> None:
    agent.give("1", REVIEWS)
    serve(plane)
    async with Proxy(pod(plane, agent), "--concurrency", workers) as proxy:
        await point_at_inbound(plane, proxy)
        assert await get(proxy.ports["main"]) == (200, "from inbound")
        assert await proxy.stat("listener.inbound.ssl.handshake") == 1
        assert await proxy.stat("listener.inbound.ssl.no_certificate") == 0
        assert await proxy.stat("cluster.reviews.tlsMode-istio.total_match_count") >= 1
        assert await certificates_shown(proxy) == {REVIEWS.certificate.serial_number}
        assert agent.of_type(SECRET_TYPE)[0].node.id == "n"
        assert {stream.method for stream in agent.streams} == {
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
        }
        _, dump = await proxy.admin("/config_dump")
        told = dump + proxy.output()
        for line in REVIEWS.key_pem.decode().splitlines()[1:-1]:
            assert line not in told


async def test_a_host_without_the_label_gets_plain_bytes_which_the_other_refuses(
    plane: ControlPlane, agent: Agent
) -> None:
    agent.give("1", REVIEWS)
    serve(plane)
    async with Proxy(pod(plane, agent)) as proxy:
        await point_at_inbound(plane, proxy, tlsMode="disabled")
        status, _ = await get(proxy.ports["main"])
        assert status == 503
        assert await proxy.stat("listener.inbound.ssl.handshake") == 0


async def test_another_identity_is_not_spoken_to(plane: ControlPlane, agent: Agent) -> None:
    agent.give("1", RATINGS)
    serve(plane)
    async with Proxy(pod(plane, agent)) as proxy:
        await point_at_inbound(plane, proxy)
        status, _ = await get(proxy.ports["main"])
        assert status == 503
        assert await proxy.stat("cluster.reviews.ssl.fail_verify_san") >= 1


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_certificates_are_renewed_and_bad_ones_are_not_taken(
    plane: ControlPlane, agent: Agent, workers: str
) -> None:
    agent.give("1", REVIEWS)
    serve(plane)
    async with Proxy(pod(plane, agent), "--concurrency", workers) as proxy:
        await point_at_inbound(plane, proxy)
        assert await get(proxy.ports["main"]) == (200, "from inbound")
        agent.give("2", RENEWED)
        await agent.acked(SECRET_TYPE, "2")
        assert await certificates_shown(proxy) == {RENEWED.certificate.serial_number}
        agent.give("3", RENEWED, key=RATINGS)
        await agent.until(lambda: agent.nacks(SECRET_TYPE))
        assert "KEY_VALUES_MISMATCH" in agent.nacks(SECRET_TYPE)[0]
        agent.give("4", RENEWED, authority=world().other_ca)
        await agent.acked(SECRET_TYPE, "4")
        assert await certificates_shown(proxy) == {RENEWED.certificate.serial_number}
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["main"])
        writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")  # on the connection of before, or on a new one
        assert (await reader.readline()).split()[1] in (b"200", b"503")
        writer.close()
        await agent.stop()
        agent.give("5", RENEWED)
        await proxy.until_stat("sds.default.update_failure", lambda count: count > 0)
        assert await certificates_shown(proxy) == {RENEWED.certificate.serial_number}


async def test_without_secrets_nothing_goes_through(plane: ControlPlane, agent: Agent) -> None:
    """What waits for them gives up after the time it has; then connections fail, as Envoy's."""
    serve(plane, timeout="0.1s")
    async with Proxy(pod(plane, agent)) as proxy:
        await point_at_inbound(plane, proxy)
        status, _ = await get(proxy.ports["main"])
        assert status == 503
        assert await proxy.stat("cluster.reviews.client_ssl_socket_factory.upstream_context_secrets_not_ready") >= 1
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["inbound"])
        writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert await proxy.stat("sds.default.init_fetch_timeout") >= 1
        agent.give("1", REVIEWS)
        await agent.acked(SECRET_TYPE, "1")
        assert await get(proxy.ports["main"]) == (200, "from inbound")


async def test_a_listener_whose_secrets_are_missing_is_not_active(plane: ControlPlane, agent: Agent) -> None:
    """Nor is a cluster. Both say for what they wait."""
    plane.set(CLUSTER_TYPE, {})
    plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [direct("/", "hello")]))})
    async with Proxy(pod(plane, agent)) as proxy:
        main = message(Listener, listener("main", [direct("/", "hello")]))
        plane.set(LISTENER_TYPE, {"main": main, "inbound": inbound()}, "2")
        await agent.until(lambda: agent.of_type(SECRET_TYPE))
        await plane.acked(LISTENER_TYPE, "2")
        assert await proxy.stat("listener_manager.total_listeners_warming") == 1
        assert await get(proxy.ports["main"]) == (200, "hello")
        plane.set(ENDPOINT_TYPE, {"reviews": endpoints(1, tlsMode="istio")})
        plane.set(CLUSTER_TYPE, {"reviews": outbound()}, "2")
        await plane.acked(CLUSTER_TYPE, "2")
        await proxy.until_stat("cluster_manager.warming_clusters", lambda count: count == 1)
        _, dump = await proxy.admin("/init_dump")
        unready = [each for part in json.loads(dump)["configs"] for each in part["unready_targets_dumps"]]
        waiting = {each["name"].rpartition(" ")[2]: sorted(each["target_names"]) for each in unready}
        targets = ["target SdsApi ROOTCA", "target SdsApi default"]
        assert waiting == {"inbound": targets, "reviews": targets}
        agent.give("1", REVIEWS)
        await proxy.until_stat("listener_manager.total_listeners_active", lambda count: count == 2)
        await proxy.until_stat("cluster_manager.warming_clusters", lambda count: count == 0)
        assert (await proxy.admin("/init_dump"))[1] == "{}\n"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_rotation_under_load_fails_nothing(plane: ControlPlane, agent: Agent, workers: str) -> None:
    """Every request shakes hands anew, on both sides with what is in force; nobody's connection is closed for it."""
    agent.give("1", REVIEWS)
    serve(plane)
    made = outbound()
    made.max_requests_per_connection.value = 1
    plane.set(CLUSTER_TYPE, {"reviews": made})
    async with Proxy(pod(plane, agent), "--concurrency", workers) as proxy:
        await point_at_inbound(plane, proxy)
        async with Load(proxy.ports["main"], from_inbound, kept=3, fresh=1) as load:
            await load.more(20)
            for version, issued in enumerate((RENEWED, REVIEWS, RENEWED), 2):
                agent.give(str(version), issued)
                await agent.acked(SECRET_TYPE, str(version))
                assert await certificates_shown(proxy) == {issued.certificate.serial_number}
                await load.more(20)
        assert load.failures == []
        assert load.closed_unasked == 0
        assert await proxy.stat("listener.inbound.ssl.handshake") >= 80
        assert await proxy.stat("listener.inbound.ssl.connection_error") == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_connections_of_a_revoked_certificate_are_drained(
    plane: ControlPlane, agent: Agent, workers: str
) -> None:
    """On both sides, where the bootstrap asks for it, and no request fails for it."""
    agent.give("1", REVIEWS)
    serve(plane)
    tree = json.loads(pod(plane, agent))
    drain = {"@type": _DRAIN, "interval": "0.1s", "grace": "0.1s"}
    tree["bootstrap_extensions"] = [{"name": "drain", "typed_config": drain}]
    async with Proxy(json.dumps(tree), "--concurrency", workers) as proxy:
        await point_at_inbound(plane, proxy)
        async with Load(proxy.ports["main"], from_inbound, kept=3) as load:
            await load.more(20)
            agent.give("2", RENEWED)
            await agent.acked(SECRET_TYPE, "2")
            assert await certificates_shown(proxy) == {RENEWED.certificate.serial_number}
            agent.give("3", RENEWED, revoked=(REVIEWS,))
            await agent.acked(SECRET_TYPE, "3")
            await proxy.until_stat("certificate_drain.downstream_cx_peer_revoked", lambda count: count > 0)
            await load.more(20)
        assert load.failures == []
        # The client may have heard of it before we looked at our own side.
        assert await proxy.stat("certificate_drain.downstream_cx_peer_expired") == 0
        assert await proxy.stat("cluster.reviews.upstream_cx_destroy") > 0
        assert await proxy.stat("listener.inbound.ssl.fail_verify_error") == 0


def from_inbound(answer: Answer, _: bytes) -> str:
    return "" if (answer.status, answer.body) == (200, b"from inbound") else f"{answer.status} {answer.body!r}"


def s_client(port: int, *arguments: str) -> str:
    """What `openssl s_client` tells of a handshake as a client of the mesh."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(REVIEWS.pem + REVIEWS.key_pem)
        file.flush()
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cert", file.name, "-key", file.name]
        done = subprocess.run(
            [*command, "-alpn", "istio-http/1.1,http/1.1", *arguments],
            input=b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n",
            capture_output=True,
            timeout=20,
            check=False,
        )
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_another_client_sees_the_new_certificate_and_resumes_its_session(
    plane: ControlPlane, agent: Agent, version: str, tmp_path: Path
) -> None:
    agent.give("1", REVIEWS)
    serve(plane)
    session = str(tmp_path / "session")
    async with Proxy(pod(plane, agent)) as proxy:
        port = proxy.ports["inbound"]
        told = await asyncio.to_thread(s_client, port, version, "-ign_eof", "-sess_out", session)
        assert "from inbound" in told
        assert "CN = reviews" in told
        assert "ALPN protocol: http/1.1" in told
        assert "CN = ca" in told.partition("Acceptable client certificate CA names")[2]
        agent.give("2", RENEWED)
        await agent.acked(SECRET_TYPE, "2")
        told = await asyncio.to_thread(s_client, port, version, "-ign_eof")
        assert "CN = renewed" in told
        told = await asyncio.to_thread(s_client, port, version, "-ign_eof", "-sess_in", session)
        assert "Reused, TLSv1" in told
        assert "from inbound" in told
        agent.give("3", RENEWED, authority=issue("ca", world().ca, ca=True, key=world().ca.key))
        await agent.acked(SECRET_TYPE, "3")
        told = await asyncio.to_thread(s_client, port, version, "-ign_eof", "-sess_in", session)
        assert "New, TLSv1" in told


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_updated_in_place_follows_its_secrets(plane: ControlPlane, agent: Agent, workers: str) -> None:
    """A listener whose routes change, and a cluster whose endpoints do: nobody reconnects for that, and what they are
    made of anew hears of the next secret."""
    agent.give("1", REVIEWS)
    serve(plane)
    async with Proxy(pod(plane, agent), "--concurrency", workers) as proxy:
        await point_at_inbound(plane, proxy)
        assert await get(proxy.ports["main"]) == (200, "from inbound")
        manager = json_format.MessageToDict(inbound(), preserving_proto_field_name=True)
        changed = json.loads(json.dumps(manager).replace("from inbound", "from elsewhere"))
        main = message(Listener, listener("main", [forward("/", "reviews")]))
        plane.set(LISTENER_TYPE, {"main": main, "inbound": message(Listener, changed)}, "2")
        await proxy.until_stat("listener_manager.listener_in_place_updated", lambda count: count > 0)
        await plane.acked(LISTENER_TYPE, "2")
        assert await get(proxy.ports["main"]) == (200, "from elsewhere")
        agent.give("2", RENEWED)
        await agent.acked(SECRET_TYPE, "2")
        assert await certificates_shown(proxy) == {RENEWED.certificate.serial_number}
        assert "CN = renewed" in await asyncio.to_thread(s_client, proxy.ports["inbound"], "-ign_eof")
