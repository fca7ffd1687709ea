"""From version to version of a cluster's `ClusterLoadAssignment`: what did not change is not read again.

The message has all endpoints each time, ten thousand perhaps, of which one is another. An endpoint is known by its
bytes, in its place: so the others cost a look-up, and stay the objects that they were.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Final

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshproxy.config.errors import ConfigErrors, item
from meshproxy.config.fields.check import check_fields
from meshproxy.config.validate import validate_message
from meshproxy.upstream.build_endpoints import MAX_WEIGHT, build_endpoint, build_locality, filter_metadata
from meshproxy.upstream.config import EndpointConfig
from meshproxy.upstream.host import Locality

_STEP: Final = 500  # look-ups
_COST: Final = 30  # of an endpoint that is read, in look-ups

# A priority, a locality and its metadata.
PlaceKey = tuple[int, str, str, str, bytes]


class Place:
    """The endpoints of one locality in one priority. `locality` is the same object in every version."""

    def __init__(self, locality: Locality, metadata: dict[str, Any] | None, priority: int) -> None:
        self.locality = locality
        self.metadata = metadata
        self.priority = priority
        self.weight = 0  # of the locality, in this version
        self.endpoints: dict[bytes, EndpointConfig] = {}
        self.total_weight = 0  # of the endpoints


class Assignment:
    """One version. `policy` is the message's."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.places: dict[PlaceKey, Place] = {}
        self.endpoints: list[EndpointConfig] = []


class AssignmentReader:
    """Reads the versions of the assignment of one cluster."""

    def __init__(self) -> None:
        self._places: dict[PlaceKey, Place] = {}  # of the version in force
        self._before: dict[PlaceKey, Place] = {}

    def read(self, message: Any, errors: ConfigErrors) -> Generator[None, None, Assignment]:
        """The version that `message` is, in steps; with errors, it is not to be used."""
        rest = _without_endpoints(message)
        _check(rest, "", errors)
        yield
        assignment = Assignment(rest.policy)
        seen: set[str] = set()
        for index, group in enumerate(message.endpoints):
            where = item("", "endpoints", index)
            key, named = _place_key(rest.endpoints[index])
            before = self._places.get(key)
            place = assignment.places.get(key)
            if place is None:
                locality = Locality(*named.key) if before is None else before.locality
                place = Place(locality, filter_metadata(rest.endpoints[index]), group.priority)
                assignment.places[key] = place
            place.weight = named.weight  # several groups may name the same locality: the last counts, as in Envoy
            known = {} if before is None else before.endpoints
            yield from _read_place(place, known, group, where, assignment.endpoints, seen, errors)
            if place.total_weight > MAX_WEIGHT:
                errors.add(where, f"the sum of the weights of a locality must not exceed {MAX_WEIGHT}")
        return assignment

    def take(self, assignment: Assignment) -> bool:
        """This version is in force now; whether the weight of a locality changed."""
        self._before, self._places = self._places, assignment.places
        changed = False
        for place in assignment.places.values():
            changed = changed or place.locality.weight != place.weight
            place.locality.weight = place.weight
        return changed

    def forget(self) -> Iterator[None]:
        """Let go of the version before, in steps."""
        before, self._before = self._before, {}
        for place in before.values():
            while place.endpoints:
                place.endpoints.popitem()
                if len(place.endpoints) % _STEP == 0:
                    yield


def _place_key(group: Any) -> tuple[PlaceKey, Locality]:
    """Of a LocalityLbEndpoints; and its locality."""
    locality = build_locality(group)
    metadata = group.metadata.SerializeToString(deterministic=True) if group.HasField("metadata") else b""
    return (group.priority, locality.region, locality.zone, locality.sub_zone, metadata), locality


def _read_place(
    place: Place,
    known: dict[bytes, EndpointConfig],
    group: Any,
    path: str,
    endpoints: list[EndpointConfig],
    seen: set[str],
    errors: ConfigErrors,
) -> Iterator[None]:
    """Of endpoints with one address the first counts, as in Envoy."""
    cost = 0
    for index, lb_endpoint in enumerate(group.lb_endpoints):
        cost += 1
        raw = lb_endpoint.SerializeToString(deterministic=True)
        endpoint = known.get(raw)
        if endpoint is None:
            cost += _COST
            endpoint = _read_endpoint(lb_endpoint, item(path, "lb_endpoints", index), place, errors)
        if endpoint is not None:
            place.endpoints[raw] = endpoint
            if endpoint.key not in seen:
                seen.add(endpoint.key)
                place.total_weight += endpoint.weight
                endpoints.append(endpoint)
        if cost >= _STEP:
            cost = 0
            yield


def _read_endpoint(lb_endpoint: Any, path: str, place: Place, errors: ConfigErrors) -> EndpointConfig | None:
    own = type(lb_endpoint)()
    own.CopyFrom(lb_endpoint)
    before = len(errors)
    _check(own, path, errors)
    endpoint = build_endpoint(own, path, False, errors) if len(errors) == before else None
    if endpoint is not None:
        endpoint.locality = place.locality
        endpoint.priority = place.priority
        endpoint.locality_metadata = place.metadata
    return endpoint


def _without_endpoints(message: Any) -> Any:
    """A copy, whose localities have no endpoints."""
    rest: Any = ClusterLoadAssignment(cluster_name=message.cluster_name)
    for name in ("policy", "named_endpoints"):
        _copy_field(message, rest, name)
    for group in message.endpoints:
        own = rest.endpoints.add()
        for field, _ in group.ListFields():
            if field.name != "lb_endpoints":
                _copy_field(group, own, field.name)
    return rest


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if source.DESCRIPTOR.fields_by_name[name].message_type is None:
        setattr(target, name, value)
    elif source.DESCRIPTOR.fields_by_name[name].is_repeated:
        getattr(target, name).MergeFrom(value)
    elif source.HasField(name):
        getattr(target, name).CopyFrom(value)


def _check(message: Any, path: str, errors: ConfigErrors) -> None:
    """What we cannot do is left out of `message`, as of all that comes from a control plane."""
    validate_message(message, path, errors)
    for where, note in check_fields(message, path, errors, lenient=True):
        errors.warn(where, note)
