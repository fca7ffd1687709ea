"""The command line: `meshproxy run | validate | explain | …`, with flags as Envoy's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from meshproxy.agent.flags import AGENT_EXAMPLES, add_agent_flags
from meshproxy.completion import SHELLS, completion_script
from meshproxy.pilot.authority.flags import AUTHORITY_EXAMPLES, add_authority_command
from meshproxy.pilot.flags import RULES_EXAMPLES, add_rules_flags
from meshproxy.pilot.pilot_flags import PILOT_EXAMPLES, add_pilot_flags
from meshproxy.version import __version__, is_compiled

_EXAMPLES: Final = """\
examples:
  meshproxy run -c envoy.yaml                    serve what the file says; it is reloaded when it changes
  meshproxy run -c envoy.yaml --concurrency 4    four worker processes
  meshproxy validate -c envoy.yaml               every error with its path; exit 1 when there is one
  meshproxy explain -c envoy.yaml http://a/b     where this request goes, and why
  meshproxy filter new hello                     a filter in Python to begin with, and its test
  meshproxy pilot --rules rules/                 a control plane: tell proxies what a mesh's documents mean
  meshproxy agent --ca pilot:15012 …             certificates for the proxies of a pod, renewed
  meshproxy demo                                 watch a canary release, with real traffic
  eval "$(meshproxy completion bash)"            let the shell complete commands and flags
"""
_EXPLAIN_EXAMPLES: Final = """\
examples:
  meshproxy explain -c envoy.yaml http://shop.test/cart
  meshproxy explain -c envoy.yaml --path /cart --authority shop.test -H 'cookie: user=alice'
  meshproxy explain -c envoy.yaml https://shop.test/ --listener ingress --source 10.1.2.3
  meshproxy explain -c envoy.yaml /cart --json | jq .route

The request is looked at as the proxy would: its path normalised, x-forwarded-for trusted or not, its host with or
without a port. HTTP filters are listed and not run: what they change in a request is not seen here.
On a live proxy: curl 'http://ADMIN/explain?path=/cart&authority=shop.test&header=cookie:user=alice' (format=json).

exit codes: 0 a route takes the request (or a TCP proxy its bytes), 1 nothing does, 2 the configuration or the flags are
wrong
"""
# Flags that Envoy has and that change nothing here: they parse, so that whoever starts Envoy can start us.
_IGNORED: Final = {
    "--base-id": "ID",
    "--base-id-path": "FILE",
    "--restart-epoch": "N",
    "--parent-shutdown-time-s": "S",
    "--log-format": "FORMAT",
    "--log-path": "FILE",
    "--socket-path": "PATH",
    "--socket-mode": "MODE",
    "--stats-tag": "TAG",
    "--bootstrap-version": "N",
    "--max-obj-name-len": "N",
    "--max-stats": "N",
    "--disable-extensions": "NAMES",
    "--file-flush-min-size-kb": "KB",
    "--local-address-ip-version": "v4|v6",
}
_IGNORED_SWITCHES: Final = (
    "--disable-hot-restart",
    "--use-dynamic-base-id",
    "--skip-hot-restart-on-no-parent",
    "--skip-hot-restart-parent-stats",
    "--log-format-escaped",
    "--log-stacktrace-single-entry",
    "--enable-fine-grain-logging",
    "--enable-mutex-tracing",
    "--cpuset-threads",
    "--skip-deprecated-logs",
    "--ignore-unknown-dynamic-fields",
    "--hot-restart-version",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        arguments.insert(0, "run")  # as Envoy is called: without a command
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.version or options.command == "version":
        return _version()
    if options.command is None:
        parser.print_help()
        return 0
    if options.command == "completion":
        print(completion_script(parser, options.shell), end="")
        return 0
    if options.command == "demo":
        from meshproxy.demo.command import run_demo

        return run_demo(options)
    if options.command == "filter":
        from meshproxy.scaffold import new_filter

        return new_filter(options.name, options.directory)
    if options.command == "pilot":
        if find_spec("grpc") is None:
            print("meshproxy pilot: the package grpcio is needed: pip install 'meshproxy[grpc]'", file=sys.stderr)
            return 2
        from meshproxy.pilot.command import run_pilot

        return run_pilot(options)
    if options.command == "rules":
        from meshproxy.pilot.rules_command import run_rules

        return run_rules(options)
    if options.command in ("agent", "authority") and find_spec("cryptography") is None:
        reason = "cryptography is needed: pip install 'meshproxy[authority]'"
        print(f"meshproxy {options.command}: {reason}", file=sys.stderr)
        return 2
    if options.command == "agent":
        from meshproxy.agent.command import run_agent

        return run_agent(options)
    if options.command == "authority":
        from meshproxy.pilot.authority.command import run_authority

        return run_authority(options)
    if options.command == "explain":
        from meshproxy.server.explain.command import explain

        return explain(options)
    return _serve(options)


def _version() -> int:
    build = "compiled" if is_compiled() else "not compiled"
    print(f"meshproxy {__version__} ({build}, Python {sys.version.split()[0]})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshproxy",
        description="A service-mesh data plane in Python that is configured like Envoy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="serve what a configuration says", allow_abbrev=False)
    _add_config(run)
    _add_process(run)
    validate = commands.add_parser("validate", help="check a configuration: every error with its path")
    _add_config(validate)
    explain = _add_command(
        commands,
        "explain",
        "say where a request goes, and why",
        "Say which listener, filter chain, virtual host, route, cluster and hosts a request takes, and why "
        "it passes the others over.",
        _EXPLAIN_EXAMPLES,
    )
    _add_config(explain)
    _add_question(explain)
    new = commands.add_parser(
        "filter",
        help="begin a filter in Python",
        description="Write a filter in Python, its test, and a configuration that runs it (docs/writing-filters.md).",
    )
    new.add_argument("verb", choices=("new",), help="write NAME.py, test_NAME.py and NAME.yaml")
    new.add_argument("name", metavar="NAME", help="small letters, digits and _")
    new.add_argument("--directory", default=".", metavar="PATH", help="where to (default: here)")
    demo = commands.add_parser("demo", help="watch a canary release with real traffic")
    demo.add_argument("--keep", action="store_true", help="leave everything running at the end, and print what to try")
    demo.add_argument("--seconds", type=_seconds, default=None, metavar="S", help="how long each act lasts (default 8)")
    demo.add_argument(
        "-c", "--config-path", default="", metavar="FILE", help="show this variant of examples/mesh/canary.yaml"
    )
    pilot = _add_command(
        commands,
        "pilot",
        "serve what the documents of a mesh say to its proxies, over xDS",
        "A control plane: proxies (meshproxy, Envoy, gRPC clients) are told what the documents of a mesh "
        "mean for them, and of every change.",
        PILOT_EXAMPLES,
    )
    add_pilot_flags(pilot)
    rules = _add_command(
        commands,
        "rules",
        "check the documents of a mesh, and bring them to its pilots",
        "Check, show and change the documents (VirtualService, DestinationRule, ServiceEntry, …) that a "
        "pilot turns into configuration (docs/rules.md).",
        RULES_EXAMPLES,
    )
    add_rules_flags(rules)
    agent = _add_command(
        commands,
        "agent",
        "have a pod's key certified, and serve its proxies their secrets",
        "The agent of a pod: it makes the key, has it certified by the mesh's authority, and serves the "
        "pod's proxies certificate, key and roots over SDS.",
        AGENT_EXAMPLES,
    )
    add_agent_flags(agent)
    authority = _add_command(
        commands,
        "authority",
        "the certificate authority of a mesh: make it, rotate its roots, revoke",
        "Make and look after the authority that a pilot issues certificates with (docs/authority.md).",
        AUTHORITY_EXAMPLES,
    )
    add_authority_command(authority)
    commands.add_parser("version", help="print the version, and whether the hot modules are compiled")
    completion = commands.add_parser(
        "completion",
        help="print what makes a shell complete commands and flags",
        epilog='bash, zsh: eval "$(meshproxy completion bash)"   fish: meshproxy completion fish | source',
    )
    completion.add_argument("shell", choices=SHELLS, help="whose completion")
    return parser


def _add_command(commands: Any, name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """One whose help ends with examples, as they are written."""
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=raw
    )
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config-path", default="", metavar="FILE", help="the Envoy v3 bootstrap, YAML or JSON")
    parser.add_argument("--config-yaml", default="", metavar="TEXT", help="YAML that is merged over the file")
    parser.add_argument(
        "--allow-unknown-static-fields",
        "--allow-unknown-fields",
        action="store_true",
        help="unknown fields of the file are warnings, not errors",
    )
    parser.add_argument(
        "--xds-cache",
        default="",
        metavar="FILE",
        help="keep what the control plane says in this file (no secrets), and start by it when none answers",
    )
    parser.add_argument("--service-node", default="", metavar="ID", help="node.id")
    parser.add_argument("--service-cluster", default="", metavar="NAME", help="node.cluster")
    parser.add_argument("--service-zone", default="", metavar="ZONE", help="node.locality.zone")


def _add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("url", nargs="?", default="", metavar="URL", help="http://host:port/path, https://… or a path alone")
    add("--method", default="", metavar="NAME", help="default GET")
    add("--authority", default="", metavar="HOST", help="the Host header (default: the listener's address)")
    add("--path", default="", metavar="PATH?QUERY", help="the path, with its query (default /)")
    add("-H", "--header", action="append", default=[], metavar="NAME:VALUE", help="a header; may be repeated")
    add("--listener", default="", metavar="NAME", help="which listener accepts it; needed where there are several")
    add("--port", default="", metavar="N", help="the same by its port")
    add("--source", default="", metavar="IP:PORT", help="the client's address (default 127.0.0.1)")
    add("--destination", default="", metavar="IP:PORT", help="where it was bound for before it was redirected here")
    add("--tls", action=argparse.BooleanOptionalAction, default=None, help="the client speaks TLS, or does not")
    add("--server-name", default="", metavar="NAME", help="what the client asks for by SNI; means --tls")
    add("--alpn", default="", metavar="NAMES", help="protocols that the client offers, with commas between")
    add("--client-cert", action="store_true", default=None, help="the client has a certificate that is valid here")
    add("--client-uri", default="", metavar="URI", help="the URI name (SPIFFE ID) in it; means --tls --client-cert")
    add("--random", default="", metavar="N", help="the number that decides what goes by chance (default: drawn)")
    add("--json", action="store_true", help="everything, as JSON")


def _add_process(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--concurrency", type=_count, default=1, metavar="N", help="worker processes (default 1)")
    add("--drain-time-s", type=_seconds, default=20.0, metavar="S", help="how long a drain may take (default 20)")
    add(
        "--drain-strategy",
        choices=("gradual", "immediate"),
        default="gradual",
        help="what a reload replaces or /drain_listeners?graceful drains closes its connections by and by over the "
        "drain time, or each with its next response (default gradual)",
    )
    add(
        "--shutdown-delay-s",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="after SIGTERM, serve new connections for so long: endpoints lag behind (default 5)",
    )
    add("-l", "--log-level", default="info", metavar="LEVEL", help="trace, debug, info, warning, error, critical, off")
    add("--component-log-level", default="", metavar="NAME:LEVEL,…", help="levels of single components")
    add("--file-flush-interval-msec", type=int, default=1000, metavar="MS", help="how often access logs are written")
    add(
        "--reject-unknown-dynamic-fields",
        action="store_true",
        help="refuse a control plane's resource for a field that is newer than this proxy, wherever it stands",
    )
    add(
        "--enable-core-dump",
        action="store_true",
        help="let crashes leave core dumps, and debuggers read the memory, with the keys that are in it",
    )
    add("--admin-address-path", default="", metavar="FILE", help="write the admin's address there")
    add("--mode", choices=("serve", "validate"), default="serve", help="validate: check the configuration and end")
    accepted = ", ".join(sorted([*_IGNORED, *_IGNORED_SWITCHES]))
    group = parser.add_argument_group("flags of Envoy that are accepted, and have no effect here", accepted)
    for flag, metavar in _IGNORED.items():
        group.add_argument(flag, metavar=metavar, help=argparse.SUPPRESS)
    for flag in _IGNORED_SWITCHES:
        group.add_argument(flag, action="store_true", help=argparse.SUPPRESS)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1024")
    return int(text) or len(os.sched_getaffinity(0))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _serve(arguments: argparse.Namespace) -> int:
    from meshproxy.server.main import run

    return run(arguments, validate=arguments.command == "validate" or arguments.mode == "validate")
