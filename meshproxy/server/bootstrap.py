"""The bootstrap from its file: read, checked against the API's own rules, and against what we can honour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.validate import validate_message
from meshproxy.server.options import Options


def read_bootstrap(options: Options, errors: ConfigErrors) -> Any | None:
    """The Bootstrap message of `options`, with the flags merged in; None when there are errors."""
    text = b""
    if options.config_path:
        try:
            text = Path(options.config_path).read_bytes()
        except OSError as error:
            errors.add("", f"cannot read {options.config_path}: {error.strerror}")
            return None
    bootstrap = load_bootstrap(
        text, overlay=options.config_yaml, allow_unknown_fields=options.allow_unknown_static_fields, errors=errors
    )
    if bootstrap is None:
        return None
    _merge_flags(bootstrap, options)
    validate_message(bootstrap, "", errors)
    for path, note in check_fields(bootstrap, "", errors):
        errors.warn(path, note)
    return None if errors else bootstrap


def _merge_flags(bootstrap: Any, options: Options) -> None:
    """The command line wins over the file, as with Envoy."""
    if options.service_node:
        bootstrap.node.id = options.service_node
    if options.service_cluster:
        bootstrap.node.cluster = options.service_cluster
    if options.service_zone:
        bootstrap.node.locality.zone = options.service_zone
