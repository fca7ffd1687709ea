"""The bootstrap from its file: read, checked against the API's own rules, and against what we can honour.

Reading a large file takes seconds, so a process that serves has another one do it (`read_bootstrap_apart`), which sends
back the message serialised: reading that again takes a thousandth of the time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import marshal
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.runtime import Runtime
from meshproxy.config.validate import validate_message
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stats_config import build_stats_settings
from meshproxy.server.admin_config import build_admin
from meshproxy.server.options import Options
from meshproxy.server.resources import ResourceBuilder

# Text that is read within 5 ms, as one measures on two slow cores; more than that is read apart.
_SMALL_BYTES: Final = 4096


def read_bootstrap(options: Options, errors: ConfigErrors) -> Any | None:
    """The Bootstrap message of `options`, with the flags merged in: as far as it could be read, when there are errors.
    None when there is none."""
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
    broken_rules, not_honoured = ConfigErrors(), ConfigErrors()
    validate_message(bootstrap, "", broken_rules)
    errors.absorb(broken_rules)
    for path, note in check_fields(bootstrap, "", not_honoured):
        not_honoured.warn(path, note)
    errors.absorb(not_honoured)
    further = ConfigErrors()
    _check_process(bootstrap, further)
    if errors:
        _check_builds(bootstrap, further)
    errors.absorb(further)
    return bootstrap


def _check_process(bootstrap: Any, errors: ConfigErrors) -> None:
    """What concerns the process and none of its resources."""
    build_stats_settings(bootstrap.stats_config, "stats_config", errors.items)
    if bootstrap.admin.HasField("address"):
        context = BuildContext(errors, Runtime(), StatsRegistry())
        build_admin(bootstrap.admin, "admin", context)
        context.close()


def _check_builds(bootstrap: Any, errors: ConfigErrors) -> None:
    """What building would find, of a message that is not going to be built."""
    stats = StatsRegistry()
    ResourceBuilder(bootstrap, None, Runtime(stats=stats), stats, errors, broken=True).build().discard()


def _merge_flags(bootstrap: Any, options: Options) -> None:
    """The command line wins over the file, as with Envoy."""
    if options.service_node:
        bootstrap.node.id = options.service_node
    if options.service_cluster:
        bootstrap.node.cluster = options.service_cluster
    if options.service_zone:
        bootstrap.node.locality.zone = options.service_zone


# -- in a process of its own


async def read_bootstrap_apart(options: Options, errors: ConfigErrors) -> Any | None:
    """As `read_bootstrap`, but the event loop turns meanwhile."""
    if _size(options) <= _SMALL_BYTES:
        return read_bootstrap(options, errors)
    try:
        done = await asyncio.to_thread(_run_reader, marshal.dumps(dataclasses.asdict(options)))
    except OSError as error:
        errors.add("", f"no process can be started to read the configuration: {error.strerror}")
        return None
    if done.returncode != 0:
        errors.add("", f"the process that was to read the configuration ended with {done.returncode}")
        return None
    serialised, found, warnings = marshal.loads(done.stdout)
    for path, reason in found:
        errors.add(path, reason)
    for path, reason in warnings:
        errors.warn(path, reason)
    return None if serialised is None else Bootstrap.FromString(serialised)


def _run_reader(request: bytes) -> subprocess.CompletedProcess[bytes]:
    """In a thread: starting a process from the event loop would copy the memory map of this one while traffic waits."""
    command = [sys.executable, "-m", "meshproxy.server.bootstrap"]
    return subprocess.run(command, input=request, stdout=subprocess.PIPE, check=False)


def _size(options: Options) -> int:
    try:
        size = os.stat(options.config_path).st_size if options.config_path else 0
    except OSError:
        size = 0  # `read_bootstrap` tells why
    return size + len(options.config_yaml)


def _main() -> None:
    import meshproxy.filters.builtin  # noqa: F401  their messages and tables are registered

    options = Options(**marshal.loads(sys.stdin.buffer.read()))
    errors = ConfigErrors()
    bootstrap = read_bootstrap(options, errors)
    serialised = None if bootstrap is None else bootstrap.SerializeToString(deterministic=True)
    found, warnings = ([(one.path, one.reason) for one in items] for items in (errors.items, errors.warnings))
    sys.stdout.buffer.write(marshal.dumps((serialised, found, warnings)))


if __name__ == "__main__":
    _main()
