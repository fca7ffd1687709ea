"""Which metadata the hosts of a request must have: `metadata_match` of routes and weighted clusters."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import json_format

LB: Final = "envoy.lb"  # the part of metadata that balancing looks at


class MetadataCriteria:
    """The fields of `envoy.lb` that a host must have, each with its value."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        # In the order of their names, with values as `frozen` makes them: what subsets are looked up by.
        self.key: tuple[tuple[str, object], ...] = tuple([(name, frozen(fields[name])) for name in sorted(fields)])
        self.names: tuple[str, ...] = tuple(sorted(fields))

    def only(self, names: frozenset[str]) -> MetadataCriteria:
        """Without the fields of other names."""
        return MetadataCriteria({name: value for name, value in self.fields.items() if name in names})

    def merged(self, fields: dict[str, Any]) -> MetadataCriteria:
        """With these fields added, which win."""
        return MetadataCriteria({**self.fields, **fields})


def frozen(value: Any) -> object:
    """A value of metadata in a form that hashes, and equals another one when the protobuf values are equal."""
    if isinstance(value, bool) or value is None:
        return ("literal", value)  # True is no number
    if isinstance(value, list):
        return ("list", tuple([frozen(each) for each in value]))
    if isinstance(value, dict):
        return ("struct", tuple([(name, frozen(value[name])) for name in sorted(value)]))
    return value


def build_criteria(metadata: Any, base: MetadataCriteria | None) -> MetadataCriteria | None:
    """From a `metadata_match`; `base` is that of the level above, whose fields it adds to. None without any."""
    if LB not in metadata.filter_metadata:
        return base
    fields: dict[str, Any] = json_format.MessageToDict(metadata.filter_metadata[LB])
    return MetadataCriteria(fields) if base is None else base.merged(fields)
