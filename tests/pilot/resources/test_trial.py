"""A document whose resources a proxy would refuse is refused itself, alone, and by name."""

from __future__ import annotations

import pytest

from meshproxy.pilot.documents.document import parse_document, split_documents
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.mesh.rulebook import RuleBook
from meshproxy.pilot.resources.trial import reasons_against
from meshproxy.pilot.sources.source import RuleSet
from tests.pilot.resources.support import HERE, RULES, documents_of, sample

EVERYTHING = [
    HERE / "everything_services.yaml",
    *sorted((HERE.parent / "documents/full").iterdir()),
    *sorted(RULES.iterdir()),
]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.stem)
def test_what_envoy_takes_is_taken(path: object) -> None:
    found = {str(document.identity): reasons_against(document) for document in documents_of(path.read_text())}  # type: ignore[attr-defined]
    assert {name: reasons for name, reasons in found.items() if reasons} == {}


def refused(kind: str, spec: str, group: str = "networking.istio.io/v1") -> list[str]:
    (raw,) = split_documents("f", f"apiVersion: {group}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n")
    document = parse_document(raw).document
    assert document is not None
    return reasons_against(document)


TO = "route: [{destination: {host: a}}]"


def test_routes_that_the_api_does_not_allow() -> None:
    (reason,) = refused("VirtualService", f'{{hosts: [a], http: [{{{TO}, rewrite: {{uri: "/a\\r\\nb"}}}}]}}')
    assert reason.startswith("http[0] as a route.route.prefix_rewrite: value is not a valid HTTP header value")
    (reason,) = refused("VirtualService", '{hosts: [a], http: [{redirect: {uri: "/a\\n"}}]}')
    assert reason.startswith("http[0] as a route.redirect.path_redirect: ")


def test_clusters_that_the_api_does_not_allow() -> None:
    cookie = "{consistentHash: {httpCookie: {name: ''}}}"
    reasons = refused("DestinationRule", f"{{host: a, trafficPolicy: {{loadBalancer: {cookie}}}}}")
    assert reasons == ["subset -, port 80 as a hash policy.cookie.name: value length must be at least 1 characters"]


def test_the_rest_stays_and_so_does_its_last_good_version() -> None:
    good = sample("services", "fault")
    bad = good.replace("rewrite: {uri: /}", 'rewrite: {uri: "/\\n"}')
    book = RuleBook(MeshConfig(), reasons_against)
    for revision, text in enumerate((good, bad)):
        book.update(RuleSet(str(revision), tuple(split_documents("f.yaml", text))))
    (rejection,) = book.rejections
    (problem,) = rejection.problems
    assert rejection.keeps
    assert (str(rejection.identity), problem.path) == ("VirtualService shop/ratings", "spec")
    assert problem.reason.startswith("http[1] as a route.route.prefix_rewrite: ")
    (kept,) = [one for one in book.mesh.documents.values() if one.identity == rejection.identity]
    assert kept.spec.http[1].rewrite.uri == "/"
