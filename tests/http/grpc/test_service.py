"""GrpcService: what calls bring, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.google_target import INSECURE, LOCAL, TLS
from meshproxy.http.grpc.metadata import FileContent, binary_value, wire_metadata
from tests.observe.streams import make_stream
from tests.rpc.harness import parse_service, service

ON_CLUSTER = {"envoy_grpc": {"cluster_name": "c"}}
EMPTY = "type.googleapis.com/google.protobuf.Empty"
TOKEN = "envoy.config.grpc_credential.v3.FileBasedMetadataConfig"


def google(**fields: Any) -> dict[str, Any]:
    return {"google_grpc": {"target_uri": "127.0.0.1:1", "stat_prefix": "g", **fields}}


def token_of(**fields: Any) -> dict[str, Any]:
    config = {"@type": f"type.googleapis.com/{TOKEN}", **fields}
    return {"from_plugin": {"name": "file", "typed_config": config}}


def metadata(*entries: tuple[str, str]) -> dict[str, Any]:
    return {**ON_CLUSTER, "initial_metadata": [{"key": key, "value": value} for key, value in entries]}


def test_a_service_on_a_cluster() -> None:
    config = service(
        envoy_grpc={
            "cluster_name": "x",
            "authority": "some.host",
            "max_receive_message_length": 100,
            "skip_envoy_headers": True,
        },
        timeout="1.5s",
    )
    assert (config.cluster, config.authority, config.limit_bytes) == ("x", b"some.host", 100)
    assert (config.timeout_ms, config.envoy_headers, config.google) == (1500.0, False, None)


def test_what_is_not_set() -> None:
    config = service()
    assert (config.cluster, config.authority, config.limit_bytes) == ("c", b"", 0)
    assert (config.timeout_ms, config.envoy_headers, config.metadata) == (0.0, True, {})


def test_metadata_of_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_TEST", "here")
    (tmp_path / "a").write_text("one \n")
    (tmp_path / "b").write_bytes(b"\xfftwo")
    entries = [
        ("X-Plain", "a"),
        ("x-plain", "b"),
        ("x-env", "in %ENVIRONMENT(GRPC_TEST)%"),
        ("x-escaped", "100%%FILE_CONTENT(x)%%"),
        ("x-file", f"<%FILE_CONTENT({tmp_path / 'a'})%>%FILE_CONTENT({tmp_path / 'b'})%"),
    ]
    config = service(**metadata(*entries))
    assert config.initial_metadata(None) == [
        (b"x-plain", b"b"),
        (b"x-env", b"in here"),
        (b"x-escaped", b"100%FILE_CONTENT(x)%"),
        (b"x-file", b"<one>\xfftwo"),
    ]


def test_metadata_that_tell_of_a_stream() -> None:
    config, errors = parse_service(metadata(("x-path", "%REQ(:path)%!")), per_stream=True)
    assert config is not None, str(errors)
    assert config.initial_metadata(make_stream()) == [(b"x-path", b"/p/q?a=1&b=xyz%20q&a=2!")]
    assert config.initial_metadata(None) == [(b"x-path", b"")]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    content = FileContent(str(path))
    assert content.value() == b"first"
    (tmp_path / "next").write_text("second\n")
    (tmp_path / "next").rename(path)
    assert content.value() == b"second"
    path.unlink()
    assert content.value() == b"second"
    path.write_text("several\nlines\n")
    assert content.value() == b"second"
    path.write_text("third")
    assert content.value() == b"third"


def test_bytes_in_headers() -> None:
    for value in (b"", b"\0", b"\xff\xfe", b"abc", bytes(256)):
        ((name, written),) = wire_metadata([(b"x-bin", value)])
        assert b"=" not in written
        assert binary_value(HeaderMap([(name, written)]), name) == value
    assert binary_value(HeaderMap([(b"x-bin", b"AAE=")]), b"x-bin") == b"\0\1"  # padding is allowed
    assert binary_value(HeaderMap([(b"x-bin", b"AAE,AAI")]), b"x-bin") == b"\0\1"  # several, joined
    assert binary_value(HeaderMap([(b"x-bin", b"!")]), b"x-bin") is None
    assert binary_value(HeaderMap(), b"x-bin") is None


@pytest.mark.parametrize(
    ("credentials", "security"),
    [
        ({}, INSECURE),
        ({"channel_credentials": {"local_credentials": {}}}, LOCAL),
        ({"channel_credentials": {"ssl_credentials": {}}}, TLS),
    ],
)
def test_channels_of_grpcio(credentials: dict[str, Any], security: int) -> None:
    target = service(**google(**credentials)).google
    assert target is not None
    assert (target.uri, target.security, target.root_certs) == ("127.0.0.1:1", security, None)


def test_certificates_of_grpcio(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("ca")
    files = {
        "root_certs": {"filename": str(tmp_path / "ca")},
        "private_key": {"inline_string": "key"},
        "cert_chain": {"inline_string": "chain"},
    }
    target = service(**google(channel_credentials={"ssl_credentials": files})).google
    assert target is not None
    assert (target.root_certs, target.private_key, target.cert_chain) == (b"ca", b"key", b"chain")


def test_tokens_of_grpcio() -> None:
    credentials = [{"access_token": "t"}, token_of(secret_data={"inline_string": "s"}, header_key="X-K")]
    target = service(**google(channel_credentials={"local_credentials": {}}, call_credentials=credentials)).google
    assert target is not None
    assert [token.field() for token in target.tokens] == [(b"authorization", b"Bearer t"), (b"x-k", b"s")]


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({}, "s", "one of envoy_grpc, google_grpc is required"),
        (metadata((":path", "/x")), "s.initial_metadata[0].key", "cannot be the name"),
        (metadata(("ok", ""), ("Host", "x")), "s.initial_metadata[1].key", "cannot be the name"),
        (metadata(("te", "x")), "s.initial_metadata[0].key", "cannot be the name"),
        (metadata(("a b", "x")), "s.initial_metadata[0].key", "cannot be the name"),
        (metadata(("x", "%REQ(x)%")), "s.initial_metadata[0].value", "cannot depend on a request"),
        (metadata(("x", "%NOTHING%")), "s.initial_metadata[0].value", "NOTHING"),
        (metadata(("x", "%FILE_CONTENT(/none/there)%")), "s.initial_metadata[0].value", "/none/there"),
        (google(credentials_factory_name="x"), "s.google_grpc.credentials_factory_name", "'x' is not supported"),
        (google(call_credentials=[{"access_token": "t"}]), "s.google_grpc.call_credentials", "need ssl_credentials"),
        (
            google(channel_credentials={"ssl_credentials": {"private_key": {"inline_string": "k"}}}),
            "s.google_grpc.channel_credentials.ssl_credentials",
            "go together",
        ),
        (
            google(channel_credentials={"ssl_credentials": {"root_certs": {"filename": "/none/there"}}}),
            "s.google_grpc.channel_credentials.ssl_credentials.root_certs.filename",
            "/none/there",
        ),
        (
            google(
                channel_credentials={"local_credentials": {}},
                call_credentials=[token_of(secret_data={"filename": "/none/there"})],
            ),
            "s.google_grpc.call_credentials[0].from_plugin.typed_config.secret_data.filename",
            "/none/there",
        ),
        (
            google(
                channel_credentials={"local_credentials": {}},
                call_credentials=[
                    {
                        "from_plugin": {
                            "name": "x",
                            "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty"},
                        }
                    }
                ],
            ),
            "s.google_grpc.call_credentials[0].from_plugin.typed_config",
            "google.protobuf.Empty is not supported as a call credential",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_path(fields: dict[str, Any], path: str, reason: str) -> None:
    config, errors = parse_service(fields)
    assert config is None
    (error,) = errors.items
    assert error.path == path
    assert reason in error.reason


def test_without_grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    config, errors = parse_service(google())
    assert config is None
    assert str(errors).startswith("s.google_grpc: needs grpcio")


def test_a_token_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\nb")
    config, errors = parse_service(metadata(("x", f"%FILE_CONTENT({tmp_path / 't'})%")))
    assert config is None
    assert "several lines" in str(errors)
