"""`meshproxy explain`: reads a configuration, and says what becomes of one request there. Nothing is bound or sent."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any, Final

import meshproxy.filters.builtin
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.bootstrap import read_bootstrap
from meshproxy.server.explain.explanation import Explanation, ListenerView, World
from meshproxy.server.explain.question import QuestionError, build_question
from meshproxy.server.explain.text import render
from meshproxy.server.explain.upstream import ClusterView
from meshproxy.server.options import Options
from meshproxy.server.resources import ResourceBuilder, Resources
from meshproxy.server.supervisor import describe

_BUILTIN: Final = meshproxy.filters.builtin  # imported, so that the filters are registered
# Flags with a value.
_TEXTS: Final = (
    *("url", "method", "authority", "path", "listener", "port"),
    *("source", "destination", "server_name", "alpn", "client_uri", "random"),
)


def explain(arguments: argparse.Namespace) -> int:
    """0: a route takes the request; 1: none does; 2: the configuration or the question is broken."""
    options = _options(arguments)
    if not options.config_path and not options.config_yaml:
        print("meshproxy: a configuration is required: -c FILE or --config-yaml TEXT", file=sys.stderr)
        return 2
    errors = ConfigErrors()
    bootstrap = read_bootstrap(options, errors)
    if bootstrap is None or errors:
        return _refuse(options, errors)
    stats = StatsRegistry()
    runtime = Runtime(stats=stats)
    resources = ResourceBuilder(bootstrap, None, runtime, stats, errors).build()
    try:
        if errors:
            return _refuse(options, errors)
        runtime.replace_layers(resources.layers)
        explanation = Explanation(configured_world(resources), build_question(_pairs(arguments)))
        for _ in explanation.steps():
            pass
    except QuestionError as error:
        print(f"meshproxy: {error}", file=sys.stderr)
        return 2
    finally:
        resources.discard()
    print(_shown(explanation.plain, arguments.json), end="")
    return 0 if explanation.found else 1


def configured_world(resources: Resources) -> World:
    """What a bootstrap says, with the hosts that stand in it."""
    listeners = {
        name: ListenerView(listener.path, listener.message, listener.built)
        for name, listener in resources.listeners.items()
        if listener.built is not None
    }
    clusters = {
        name: ClusterView(cluster.path, cluster.built, None)
        for name, cluster in resources.clusters.items()
        if cluster.built is not None
    }
    return World(listeners, clusters.get)


def _pairs(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The flags that were given, by their names."""
    given = vars(arguments)
    pairs = [(name, given[name]) for name in _TEXTS if given.get(name)]
    pairs += [("header", each) for each in arguments.header]
    pairs += [(name, "true" if given[name] else "false") for name in ("tls", "client_cert") if given[name] is not None]
    return pairs


def _options(arguments: argparse.Namespace) -> Options:
    known = {field.name for field in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in vars(arguments).items() if name in known and value is not None})


def _refuse(options: Options, errors: ConfigErrors) -> int:
    name = options.config_path or "--config-yaml"
    print(f"{name}: the configuration cannot be used:\n{describe(errors)}", file=sys.stderr)
    return 2


def _shown(plain: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    return render(plain, colours=sys.stdout.isatty())
