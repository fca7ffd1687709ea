"""The subsets of a cluster, from `lb_subset_config` or a typed `Subset` policy, whose fields have the same names."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.upstream.config import (
    ANY_ENDPOINT,
    DEFAULT_SUBSET,
    KEYS_SUBSET,
    NO_FALLBACK,
    UNDEFINED_FALLBACK,
    SubsetConfig,
    SubsetSelector,
)

_FALLBACKS: Final = (NO_FALLBACK, ANY_ENDPOINT, DEFAULT_SUBSET)
_SELECTOR_FALLBACKS: Final = (UNDEFINED_FALLBACK, NO_FALLBACK, ANY_ENDPOINT, DEFAULT_SUBSET, KEYS_SUBSET)


def build_subsets(message: Any, path: str, errors: ConfigErrors) -> SubsetConfig:
    """Of several selectors with the same keys, the first counts."""
    selectors: dict[frozenset[str], SubsetSelector] = {}
    for index, each in enumerate(message.subset_selectors):
        selector = _build_selector(each, item(path, "subset_selectors", index), errors)
        if selector.keys:
            selectors.setdefault(selector.keys, selector)
    ordered = sorted(selectors.values(), key=_size, reverse=True)
    default_subset = json_format.MessageToDict(message.default_subset)
    config = SubsetConfig(ordered, _FALLBACKS[message.fallback_policy], default_subset)
    config.fallback_list = message.metadata_fallback_policy == 1
    config.locality_weight_aware = message.locality_weight_aware
    config.scale_locality_weight = message.scale_locality_weight
    config.panic_mode_any = message.panic_mode_any
    config.list_as_any = message.list_as_any
    config.allow_redundant_keys = getattr(message, "allow_redundant_keys", False)
    return config


def _size(selector: SubsetSelector) -> int:
    return len(selector.keys)


def _build_selector(message: Any, path: str, errors: ConfigErrors) -> SubsetSelector:
    fallback = _SELECTOR_FALLBACKS[message.fallback_policy]
    keys = frozenset(message.keys)
    fallback_keys = frozenset(message.fallback_keys_subset)
    where = child(path, "fallback_keys_subset")
    if fallback != KEYS_SUBSET:
        if fallback_keys:
            errors.add(where, "can be set only for the fallback policy KEYS_SUBSET")
    elif not fallback_keys:
        errors.add(where, "must not be empty for the fallback policy KEYS_SUBSET")
    elif not fallback_keys <= keys:
        errors.add(where, "must be a subset of keys")
    elif fallback_keys == keys:
        errors.add(where, "must not be all of keys")
    return SubsetSelector(keys, fallback, fallback_keys, message.single_host_per_subset)
