"""Secrets that filters refer to by their names: of the bootstrap, or of a control plane (SDS)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from meshproxy.config.config_source import build_config_source
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.generic_secret import GenericSecret
from meshproxy.config.secrets import GENERIC, Material, SecretReference, static_secret


class FilterSecret:
    """What a filter has of a secret: `current` is None as long as it is not there. It stays when the control plane
    takes the secret away.

    `unusable` says why the filter cannot use one, and "" if it can, without telling what it holds; `on_change` is told
    of each that it has from now on.
    """

    def __init__(
        self,
        unusable: Callable[[GenericSecret], str] | None = None,
        on_change: Callable[[GenericSecret], None] | None = None,
    ) -> None:
        self.current: GenericSecret | None = None
        self._unusable = unusable
        self._on_change = on_change

    def refusal(self, material: Material) -> str:
        """As the user of a secret: why it cannot be used; "" if it can."""
        if self._unusable is None or not isinstance(material, GenericSecret):
            return ""
        return self._unusable(material)

    def on_secret(self, material: Material) -> None:
        """It is there, or another one than before."""
        assert isinstance(material, GenericSecret)
        self.current = material
        if self._on_change is not None:
            self._on_change(material)


def refer_to_secret(message: Any, path: str, context: BuildContext, into: FilterSecret) -> bool:
    """`into` has from now on what the SdsSecretConfig at `path` names; what is built waits for its first value. False
    after errors."""
    if not message.HasField("sds_config"):
        return _take_static(message.name, child(path, "name"), context, into)
    source = build_config_source(message.sds_config, child(path, "sds_config"), context)
    if source is None:
        return False
    reference = SecretReference(GENERIC, message.name, source, context)
    reference.user = into
    context.init_targets.append(reference)
    return True


def _take_static(name: str, path: str, context: BuildContext, into: FilterSecret) -> bool:
    found = static_secret(context, GENERIC, name, path)
    if not isinstance(found, GenericSecret):
        return False
    reason = into.refusal(found)
    if reason:
        context.errors.add(path, reason)
    elif into.current is None:
        into.on_secret(found)
    else:  # it is in use already, with the configuration that is still in force
        context.when_in_force(functools.partial(into.on_secret, found))
    return not reason
