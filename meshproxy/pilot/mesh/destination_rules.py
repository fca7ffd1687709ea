"""Which DestinationRule a client obeys for a service, and what it comes to for a subset and a port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from meshproxy.pilot.documents.destination_rule import DestinationRule, Subset, TrafficPolicy
from meshproxy.pilot.documents.document import Document, Identity
from meshproxy.pilot.mesh.names import exported, most_specific, selects

_EMPTY: Final = TrafficPolicy()


@dataclass(frozen=True, slots=True)
class MergedRule:
    """What the rules of one host, namespace and selector say together. `documents` are those it came of."""

    namespace: str
    spec: DestinationRule
    documents: tuple[Identity, ...]

    def subset(self, name: str) -> Subset | None:
        return next((each for each in self.spec.subsets if each.name == name), None)


class HostRules:
    """The rules of one namespace for one host, the oldest first; it never changes, but remembers what it merged."""

    def __init__(self, documents: tuple[Document, ...]) -> None:
        self.documents = documents
        self._merged: dict[tuple[bool, ...], tuple[MergedRule, ...]] = {}

    def merged(self, client_namespace: str, *, private: bool = False) -> tuple[MergedRule, ...]:
        """Those that the namespace sees, one for each selector. `private`: of those that none but their own sees."""
        seen = tuple(
            exported(each.spec.export_to, each.namespace, client_namespace) and (not private or _is_private(each))
            for each in self.documents
        )
        if seen not in self._merged:
            documents = [each for each, visible in zip(self.documents, seen, strict=True) if visible]
            self._merged[seen] = _merge(documents)
        return self._merged[seen]


def _is_private(document: Document) -> bool:
    exports = document.spec.export_to
    return bool(exports) and set(exports) <= {".", document.namespace}


def _merge(documents: list[Document]) -> tuple[MergedRule, ...]:
    """As Istio: rules of the same selector are one; the oldest that says a subset or the policy is heard."""
    merged: list[MergedRule] = []
    for document in documents:
        spec: DestinationRule = document.spec
        for index, rule in enumerate(merged):
            if rule.spec.workload_selector == spec.workload_selector:
                merged[index] = _joined(rule, document)
                break
        else:
            merged.append(MergedRule(document.namespace, spec, (document.identity,)))
    return tuple(merged)


def _joined(rule: MergedRule, document: Document) -> MergedRule:
    younger: DestinationRule = document.spec
    names = {subset.name for subset in rule.spec.subsets}
    spec = replace(
        rule.spec,
        traffic_policy=rule.spec.traffic_policy or younger.traffic_policy,
        subsets=rule.spec.subsets + tuple(subset for subset in younger.subsets if subset.name not in names),
    )
    return MergedRule(rule.namespace, spec, (*rule.documents, document.identity))


# By namespace, then by host.
_ByNamespace: TypeAlias = Mapping[str, Mapping[str, HostRules]]


class DestinationRuleTable:
    """All DestinationRules."""

    def __init__(self, by_namespace: _ByNamespace, root_namespace: str) -> None:
        self._by_namespace = by_namespace
        self._root = root_namespace
        self._wildcards: dict[str, tuple[str, ...]] = {}

    def rules(self, hostname: str, service_namespace: str, client_namespace: str) -> tuple[MergedRule, ...]:
        """What stands in the client's namespace, else in the service's, else in the root namespace. As in Istio, what
        the root namespace says to all comes last for its own clients too: only its private rules come first."""
        namespaces: tuple[str, ...] = (client_namespace, service_namespace, self._root)
        if client_namespace == self._root:
            private = self._in_namespace(self._root, hostname, client_namespace, private=True)
            if private:
                return private
            namespaces = namespaces[1:]
        for namespace in dict.fromkeys(each for each in namespaces if each):
            found = self._in_namespace(namespace, hostname, client_namespace)
            if found:
                return found
        return ()

    def find(
        self, hostname: str, service_namespace: str, client_namespace: str, client_labels: dict[str, str]
    ) -> MergedRule | None:
        """The rule that a client obeys: one whose selector selects it (of its own namespace), else one without."""
        general = None
        for rule in self.rules(hostname, service_namespace, client_namespace):
            selector = rule.spec.workload_selector
            if selector is None:
                general = rule
            elif rule.namespace == client_namespace and selects(selector.match_labels, client_labels):
                return rule
        return general

    def selectors(self, namespace: str) -> set[tuple[tuple[str, str], ...]]:
        """The selectors that stand in a namespace: for what labels of a client matter."""
        found = set()
        for host_rules in self._by_namespace.get(namespace, {}).values():
            for document in host_rules.documents:
                if document.spec.workload_selector is not None:
                    found.add(document.spec.workload_selector.match_labels)
        return found

    def _in_namespace(
        self, namespace: str, hostname: str, client: str, *, private: bool = False
    ) -> tuple[MergedRule, ...]:
        by_host = self._by_namespace.get(namespace)
        if by_host is None:
            return ()
        visible = _Visible(by_host, client, private)
        best = most_specific(hostname, visible, self._wildcards_of(namespace, visible))
        return by_host[best].merged(client, private=private) if best is not None else ()

    def _wildcards_of(self, namespace: str, visible: _Visible) -> tuple[str, ...]:
        found = self._wildcards.get(namespace)
        if found is None:
            hosts = self._by_namespace[namespace]
            found = tuple(sorted((host for host in hosts if host.startswith("*")), key=lambda host: (-len(host), host)))
            self._wildcards[namespace] = found
        return tuple(host for host in found if host in visible)

    def replaced(self, changed: list[tuple[Document | None, Document | None]]) -> DestinationRuleTable:
        """A table in which each old document stands as the new one."""
        by_namespace = {**self._by_namespace}
        for old, new in changed:
            for document, keep in ((old, False), (new, True)):
                if document is not None:
                    hosts = dict(by_namespace.get(document.namespace, {}))
                    _put(hosts, document, keep)
                    by_namespace[document.namespace] = hosts
        return DestinationRuleTable(by_namespace, self._root)


class _Visible:
    """The hosts for which a client sees a rule."""

    def __init__(self, by_host: Mapping[str, HostRules], client: str, private: bool) -> None:
        self._by_host = by_host
        self._client = client
        self._private = private

    def __contains__(self, host: str) -> bool:
        rules = self._by_host.get(host)
        return rules is not None and bool(rules.merged(self._client, private=self._private))


def _put(hosts: dict[str, HostRules], document: Document, keep: bool) -> None:
    host = document.spec.host
    there = hosts[host].documents if host in hosts else ()
    others = tuple(each for each in there if each.identity != document.identity)
    wanted = tuple(sorted((*others, document), key=lambda each: each.age)) if keep else others
    if wanted:
        hosts[host] = HostRules(wanted)
    else:
        hosts.pop(host, None)


def traffic_policy(rule: MergedRule | None, subset: str, port: int) -> TrafficPolicy:
    """The policy for a subset ("" for none) and a port: a subset's fields take the place of the rule's; what a port
    says takes the place of the four that it may say, as a whole, as in Istio. It has no portLevelSettings any more."""
    if rule is None:
        return _EMPTY
    general = _for_port(rule.spec.traffic_policy or _EMPTY, port)
    found = rule.subset(subset) if subset else None
    if found is None or found.traffic_policy is None:
        return general
    own = found.traffic_policy
    laid_over = TrafficPolicy(
        load_balancer=own.load_balancer or general.load_balancer,
        connection_pool=own.connection_pool or general.connection_pool,
        outlier_detection=own.outlier_detection or general.outlier_detection,
        tls=own.tls or general.tls,
        proxy_protocol=own.proxy_protocol or general.proxy_protocol,
        retry_budget=own.retry_budget or general.retry_budget,
        port_level_settings=own.port_level_settings,
    )
    return _for_port(laid_over, port)


def _for_port(policy: TrafficPolicy, port: int) -> TrafficPolicy:
    for each in policy.port_level_settings:
        if each.port.number == port:
            return replace(
                policy,
                load_balancer=each.load_balancer,
                connection_pool=each.connection_pool,
                outlier_detection=each.outlier_detection,
                tls=each.tls,
                port_level_settings=(),
            )
    return replace(policy, port_level_settings=()) if policy.port_level_settings else policy
