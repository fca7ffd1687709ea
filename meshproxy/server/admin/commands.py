"""The admin's commands and their parameters, as `/help` and `/` list them."""

from __future__ import annotations

from typing import Final


class Command:
    """A path, whether it changes state (then only by POST), and what help says."""

    def __init__(
        self, path: str, help_text: str, *, mutates: bool = False, params: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.path = path
        self.help_text = help_text
        self.mutates = mutates
        self.params = params


_FILTER: Final = ("filter", "Regular expression (Google re2) for filtering stats")
_INVERT: Final = ("invert_filter", "Invert the filter regex")
_USEDONLY: Final = ("usedonly", "Only include stats that have been written since the start")

COMMANDS: Final[tuple[Command, ...]] = (
    Command("/", "Admin home page"),
    Command("/certs", "print certs on machine"),
    Command(
        "/clusters",
        "upstream cluster status",
        params=(
            ("filter", "Regular expression (Google re2) for filtering clusters by name"),
            ("format", "Format to use; One of (text, json)"),
        ),
    ),
    Command(
        "/config_dump",
        "dump current configs",
        params=(
            ("resource", "The repeated field to dump"),
            ("mask", "The fields to keep, of each config or of each element of the resource (a FieldMask)"),
            ("name_regex", "Dump only what has a name that matches this regex as a whole"),
            ("include_eds", "Dump the endpoints too"),
        ),
    ),
    Command(
        "/drain_listeners",
        "drain listeners",
        mutates=True,
        params=(
            ("graceful", "Drain for the drain time before the listeners are closed"),
            ("skip_exit", "Drain connections, but never close the listeners"),
            ("inboundonly", "Drain only listeners whose traffic_direction is INBOUND"),
        ),
    ),
    Command(
        "/explain",
        "say which route, cluster and hosts a request takes, and why",
        params=(
            ("path", "The path with its query; url stands for scheme, authority and path together"),
            ("authority", "The Host header"),
            ("method", "GET unless said otherwise"),
            ("header", "A header as name:value; may be there several times"),
            ("listener", "The name of the listener; port does too"),
            (
                "source",
                "The client's address; further: destination, tls, server_name, alpn, client_cert, client_uri, random",
            ),
            ("format", "Format to use; One of (text, json)"),
        ),
    ),
    Command("/healthcheck/fail", "cause the server to fail health checks", mutates=True),
    Command("/healthcheck/ok", "cause the server to pass health checks", mutates=True),
    Command("/help", "print out list of admin commands"),
    Command("/hot_restart_version", "print the hot restart compatibility version"),
    Command(
        "/init_dump",
        "dump what the server still waits for",
        params=(("mask", "The component whose unready targets to dump (listener)"),),
    ),
    Command("/listeners", "print listener info", params=(("format", "Format to use; One of (text, json)"),)),
    Command(
        "/logging",
        "query/change logging levels",
        mutates=True,
        params=(
            ("paths", "Change several levels: <component>:<level>,<component>:<level>"),
            ("level", "Change all levels; One of (trace, debug, info, warning, error, critical, off)"),
        ),
    ),
    Command("/memory", "print current memory usage"),
    Command("/quitquitquit", "exit the server", mutates=True),
    Command("/ready", "print server state, return 200 if LIVE, otherwise return 503"),
    Command("/reopen_logs", "reopen access logs", mutates=True),
    Command("/reset_counters", "reset all counters to zero", mutates=True),
    Command("/runtime", "print runtime values"),
    Command(
        "/runtime_modify",
        "set runtime values: ?key1=value1&key2=value2...; an empty value removes what was set here",
        mutates=True,
    ),
    Command("/server_info", "print server version/status information"),
    Command(
        "/stats",
        "print server stats",
        params=(
            _USEDONLY,
            _FILTER,
            _INVERT,
            ("format", "Format to use; One of (text, json, prometheus)"),
            ("type", "Stat types to include; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)"),
        ),
    ),
    Command(
        "/stats/prometheus",
        "print server stats in prometheus format",
        params=(
            _USEDONLY,
            _FILTER,
            _INVERT,
            ("text_readouts", "Accepted; there are no text readouts"),
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, summary)"),
        ),
    ),
)

BY_PATH: Final = {command.path: command for command in COMMANDS}


def help_text() -> str:
    """The list of commands, in Envoy's layout."""
    lines = ["admin commands are:"]
    for command in COMMANDS:
        lines.append(f"  {command.path}{' (POST)' if command.mutates else ''}: {command.help_text}")
        lines.extend(f"      {name}: {text}" for name, text in command.params)
    return "\n".join(lines) + "\n"


_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>meshproxy admin</title>
<style>
body {{ font-family: sans-serif; margin: 2em; max-width: 60em }}
td {{ padding: .2em 1em .2em 0; vertical-align: top }}
button {{ font: inherit }}
small {{ color: #555 }}
</style>
</head>
<body>
<h1>meshproxy admin</h1>
<table>
{rows}
</table>
</body>
</html>
"""


def home_page() -> str:
    """`/`: a link for each command that reads, a button for each that changes something."""
    return _PAGE.format(rows="\n".join(_row(command) for command in COMMANDS))


def _row(command: Command) -> str:
    href = command.path[1:] or "."
    if command.mutates:
        name = f'<form action="{href}" method="post"><button>{href}</button></form>'
    else:
        name = f'<a href="{href}">{command.path}</a>'
    params = "".join(f"<br><small><b>{_escape(name)}</b> {_escape(text)}</small>" for name, text in command.params)
    return f"<tr><td>{name}</td><td>{_escape(command.help_text)}{params}</td></tr>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
