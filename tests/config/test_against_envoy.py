"""The real Envoy judges: what it refuses is refused here, and what it accepts is accepted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.validate import validate_message
from tests.config.bootstraps import good, spoil
from tests.config.test_validate import CASES
from tests.support.proxy import envoy_binary


def envoy_accepts(text: str, directory: Path) -> bool:
    path = directory / "bootstrap.yaml"
    path.write_text(text)
    run = subprocess.run(
        [envoy_binary(), "--mode", "validate", "-c", str(path), "-l", "off", "--use-dynamic-base-id"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    return run.returncode == 0


def we_accept(text: str) -> bool:
    errors = ConfigErrors()
    bootstrap = load_bootstrap(text, errors=errors)
    if bootstrap is not None:
        validate_message(bootstrap, "", errors)
    return not errors


BAD: list[tuple[str, str, Any]] = [
    *[(where, field, value) for where, field, value, _, _ in CASES],
    ("root", "foo", 1),
    ("hcm", "stat_prefix", 5),
    ("hcm", "merge_slashes", 1),
    ("hcm", "normalize_path", [True]),
    ("hcm", "codec_type", "HTTP9"),
    ("hcm", "request_timeout", "250ms"),
    ("hcm", "request_timeout", 5),
    ("hcm", "xff_num_trusted_hops", -1),
    ("hcm", "xff_num_trusted_hops", 1.5),
    ("hcm", "xff_num_trusted_hops", " 1"),
    ("hcm", "http_filters", [{"name": "x", "typed_config": {"@type": "type.googleapis.com/no.Such"}}]),
    ("vhost", "domains", {"a": 1}),
    ("route", "match", {"prefix": "/", "path": "/a"}),
    ("route", "match", [1]),
    ("route", "match", {"safe_regex": {"regex": ""}}),
    ("vhost", "routes", [{"match": {"prefix": "/"}, "direct_response": {"status": 42}}]),
    ("cluster", "type", "strict-dns"),
    ("cluster", "connect_timeout", "1.0000000001s"),
    ("cluster", "connect_timeout", ".5s"),
    ("root", "node.metadata", 5),
]

GOOD_ONES: list[tuple[str, str, Any]] = [
    ("root", "node.metadata", {"a": None, "b": [1, "x"], "c": {"d": 1.5}}),
    ("hcm", "merge_slashes", "true"),
    ("hcm", "normalize_path", {"value": True}),
    ("hcm", "codec_type", "http1"),
    ("hcm", "codec_type", "1"),
    ("hcm", "xff_num_trusted_hops", "1e0"),
    ("hcm", "request_timeout", {"seconds": 1}),
    ("hcm", "via", None),
    ("vhost", "domains", "*"),
    ("route", "match", {"prefix": "/", "path": None}),
    ("route", "request_headers_to_add", [{"header": {"key": "a b", "value": "c"}}]),
    ("cluster", "connect_timeout", "0.000000001s"),
    ("cluster", "type", "static"),
    ("cluster", "metadata", {"filter_metadata": {"a": None}}),
]


@pytest.mark.parametrize(("where", "field", "value"), BAD)
def test_both_refuse(where: str, field: str, value: Any, tmp_path: Path) -> None:
    text = json.dumps(spoil(where, field, value))
    assert (we_accept(text), envoy_accepts(text, tmp_path)) == (False, False)


@pytest.mark.parametrize(("where", "field", "value"), GOOD_ONES)
def test_both_accept(where: str, field: str, value: Any, tmp_path: Path) -> None:
    text = json.dumps(spoil(where, field, value))
    assert (we_accept(text), envoy_accepts(text, tmp_path)) == (True, True)


def test_both_accept_the_good_one(tmp_path: Path) -> None:
    text = json.dumps(good())
    assert (we_accept(text), envoy_accepts(text, tmp_path)) == (True, True)
