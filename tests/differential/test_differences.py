"""docs/envoy-differences.md and the cases that declare differences name the same keys."""

import re
from pathlib import Path
from typing import Any

from tests.differential.cases import Case
from tests.differential.http2 import SILENT_KEY, all_http2_rows
from tests.differential.test_cel import DIFFERENCES as EXPRESSIONS
from tests.differential.test_compression import DIFFERENCES as COMPRESSION
from tests.differential.test_credential_injector import DIFFERENCES as CREDENTIALS
from tests.differential.test_discovery import DIFFERENCES as DISCOVERY
from tests.differential.test_filter_chains import ROWS as CHAIN_ROWS
from tests.differential.test_grpc_tracing import DIFFERENCES as GRPC_TRACING
from tests.differential.test_load_balancing import DIFFERENCES as BALANCING
from tests.differential.test_network_rbac import DIFFERENCES as NETWORK_RBAC
from tests.differential.test_pools_http2 import ROWS as POOL_ROWS
from tests.differential.test_secrets import DIFFERENCES as SECRETS
from tests.differential.test_spiffe import DIFFERENCES as SPIFFE
from tests.differential.test_subsets import DIFFERENCES as SUBSETS
from tests.differential.test_tcp_proxy import ROWS
from tests.differential.test_tls import CASES, FAILED, XFCC_NAMES
from tests.differential.test_tls13 import DIFFERENCES as TLS13
from tests.differential.test_tracing import DIFFERENCES as TRACING
from tests.differential.test_upgrades import ROWS as UPGRADE_ROWS
from tests.differential.test_upstream_connections import ROWS as CONNECTION_ROWS
from tests.differential.test_xds_protocol import DIFFERENCES as XDS_PROTOCOL
from tests.differential.topic import all_topics

ALL_ROWS: list[Any] = [*ROWS, *CONNECTION_ROWS, *POOL_ROWS, *all_http2_rows(), *UPGRADE_ROWS]
HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "envoy-differences.md"


def declared_cases() -> list[Case]:
    """Every case with a deliberate difference."""
    return [case for topic in all_topics().values() for case in topic.cases if case.differs]


def declared_keys() -> set[str]:
    """Those of requests, of raw connections, of TLS, of balancing, of compression, and of traces."""
    of_requests = {case.differs.key for case in declared_cases() if case.differs}
    of_tls = {key for case in CASES for key, *_ in case.differs} | {FAILED for case in CASES if case.fails} | {XFCC_NAMES}
    of_balancing = {*BALANCING, *SUBSETS}
    of_compression = {*COMPRESSION, *DISCOVERY}
    of_connections = {row.differs for row in [*ALL_ROWS, *CHAIN_ROWS] if row.differs}
    of_connections |= {SILENT_KEY for row in all_http2_rows() if row.silent}
    of_tls |= SECRETS | CREDENTIALS | SPIFFE | TLS13
    of_connections |= NETWORK_RBAC | EXPRESSIONS
    return of_requests | of_tls | of_balancing | of_compression | of_connections | TRACING | GRPC_TRACING | XDS_PROTOCOL


def documented_keys() -> list[str]:
    """First column of the table's rows that cases prove."""
    return re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENT.read_text(), re.MULTILINE)


def test_every_key_is_documented_once() -> None:
    keys = documented_keys()
    assert len(keys) == len(set(keys))
    assert declared_keys() <= set(keys)


def test_every_documented_key_is_proved_by_a_case() -> None:
    assert set(documented_keys()) <= declared_keys()


def test_declared_differences_differ() -> None:
    for case in declared_cases():
        assert case.differs is not None
        assert case.differs.ours != case.differs.envoy, case.name
    assert all(bool(row.differs) == (row.ours != row.envoy) for row in ALL_ROWS)
    for row in CHAIN_ROWS:
        assert bool(row.differs) == bool(row.ours) == (row.ours not in ("", row.answer) or bool(row.or_else)), row.name
