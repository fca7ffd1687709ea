"""From parsed flags to a serving process, or to a validated configuration."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import sys
from typing import Final

import uvloop

import meshproxy.filters.builtin
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.errors import ConfigError
from meshproxy.observe.log import setup_logging
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.bootstrap import read_bootstrap
from meshproxy.server.heap import keep_freed_memory
from meshproxy.server.options import Options
from meshproxy.server.resources import ResourceBuilder
from meshproxy.server.secrecy import keep_memory_private
from meshproxy.server.supervisor import StartFailed, Supervisor, describe

_BUILTIN: Final = meshproxy.filters.builtin  # imported, so that the filters are registered
_log: Final = logging.getLogger("meshproxy.main")


def run(arguments: argparse.Namespace, *, validate: bool) -> int:
    """Serve, or validate. 0: all is well; 1: the configuration is not, and stderr says why; 2: the flags are not."""
    options = _options(arguments)
    if not options.config_path and not options.config_yaml:
        print("meshproxy: a configuration is required: -c FILE or --config-yaml TEXT", file=sys.stderr)
        return 2
    try:
        setup_logging(options.log_level, options.component_log_level)
    except ConfigError as error:
        print(f"meshproxy: {error}", file=sys.stderr)
        return 2
    return _validate(options) if validate else _serve(options)


def _options(arguments: argparse.Namespace) -> Options:
    known = {field.name for field in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in vars(arguments).items() if name in known and value is not None})


def _validate(options: Options) -> int:
    errors = ConfigErrors()
    bootstrap = read_bootstrap(options, errors)
    if bootstrap is not None and not errors:
        stats = StatsRegistry()
        ResourceBuilder(bootstrap, None, Runtime(stats=stats), stats, errors).build().discard()
    name = options.config_path or "--config-yaml"
    for warning in errors.warnings:
        print(f"{name}: warning: {warning}", file=sys.stderr)
    if errors:
        count = len(errors.sorted())
        print(f"{name}: {count} error{'s' if count > 1 else ''}\n{describe(errors)}", file=sys.stderr)
        return 1
    print(f"{name}: OK")
    return 0


async def _run(options: Options) -> int:
    return await Supervisor(options).run()


def _serve(options: Options) -> int:
    if not options.enable_core_dump:
        keep_memory_private()
    LOG_FILES.flush_interval_s = options.file_flush_interval_msec / 1000.0
    keep_freed_memory()
    gc.freeze()  # what the imports made lives for ever: do not look at it again
    try:
        return uvloop.run(_run(options))
    except StartFailed as failed:
        print(f"meshproxy: the configuration cannot be used:\n{describe(failed.errors)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        LOG_FILES.close()
