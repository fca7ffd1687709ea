"""Our route tables against the real Envoy's, case by case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshproxy.route.table import RouteTable
from tests.route.envoy_cases import CASES
from tests.route.envoy_oracle import Case, Oracle, Request, ours, route_configuration
from tests.route.support import build


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """One Envoy for all cases."""
    running = Oracle(CASES)
    yield running
    running.close()


@pytest.fixture(scope="module")
def tables() -> dict[str, RouteTable]:
    """Our table of each listener."""
    return {name: build(route_configuration(name, CASES)) for name in {case.table for case in CASES}}


ASKED = [(case, request) for case in CASES for request in case.requests]


@pytest.mark.parametrize(("case", "request_"), ASKED, ids=[f"{case.name}-{i}" for i, (case, _) in enumerate(ASKED)])
def test_answer(case: Case, request_: Request, oracle: Oracle, tables: dict[str, RouteTable]) -> None:
    """Status, location, body, headers downstream, and the request that the upstream sees, in order."""
    assert ours(tables[case.table], case, request_) == oracle.ask(case, request_)
