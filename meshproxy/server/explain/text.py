"""An explanation as an indented tree: what is taken under what it is part of, and what was passed over before it."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.server.explain.words import quoted

Plain = dict[str, Any]

_TAKEN, _PASSED, _PLAIN, _RESULT = "✓", "✗", " ", "→"
_COLOURS: Final = {_TAKEN: "\x1b[32m", _PASSED: "\x1b[2m", _RESULT: "\x1b[1m"}
_DIM: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"
_FIRST: Final = 20  # so many of those that were passed over are shown, and so many of the last
_LAST: Final = 5


class _Tree:
    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._lines: list[str] = []

    def add(self, depth: int, mark: str, text: str, path: str = "") -> None:
        line = f"{'  ' * depth}{mark} {text}".rstrip()
        if self._colours and mark in _COLOURS:
            line = f"{_COLOURS[mark]}{line}{_RESET}"
        if path:
            line += f"  {_DIM}[{path}]{_RESET}" if self._colours else f"  [{path}]"
        self._lines.append(line)

    def passed(self, depth: int, what: str, candidates: list[Plain]) -> None:
        """Each with its reason; of many only the first and the last."""
        left_out = len(candidates) - _FIRST - _LAST
        for index, each in enumerate(candidates):
            if left_out > 1 and _FIRST <= index < _FIRST + left_out:
                if index == _FIRST:
                    self.add(depth, _PASSED, f"… {left_out} more (JSON has all)")
                continue
            self.add(depth, _PASSED, f"{_label(what, each)}: {each['reason']}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _label(what: str, each: Plain) -> str:
    """`route[2] "cart"`: the kind, the index and the name."""
    last = each["path"].rpartition(".")[2]
    index = last[last.find("[") :] if last.endswith("]") else ""
    return f"{what}{index}" + (f" {quoted(each['name'])}" if each["name"] else "")


def render(plain: Plain, colours: bool = False) -> str:
    """The tree of an `Explanation.plain`."""
    tree = _Tree(colours)
    request = plain["request"]
    url = f"{'https' if request['tls'] else 'http'}://{request['authority']}{request['path']}"
    tree.add(0, _RESULT, f"{request['method']} {url} from {request['source']}")
    _connection(tree, plain)
    if "normalized" in plain:
        _normalized(tree, request, plain["normalized"])
    if "virtual_host" in plain:
        _routes(tree, plain)
    depth = 4 if plain.get("route") else 2
    _split(tree, depth, plain.get("split"))
    _filters(tree, depth, plain.get("http_filters", []))
    _cluster(tree, depth, plain.get("cluster"))
    _outcome(tree, plain["outcome"])
    return tree.text()


def _connection(tree: _Tree, plain: Plain) -> None:
    handed = plain.get("handed_from")
    if handed is not None:
        what = f"listener {quoted(handed['name'])} at {handed['address']} hands it to that of its destination"
        tree.add(0, _TAKEN, what, handed["path"])
    listener = plain["listener"]
    tree.add(0, _TAKEN, f"listener {quoted(listener['name'])} at {listener['address']}", listener["path"])
    for each in listener["listener_filters"]:
        tree.add(1, _PLAIN, f"listener filter {each['name']}" + ("" if each["runs"] else ": disabled here"))
    tree.passed(1, "filter chain", plain["filter_chains_passed_over"])
    chain = plain["filter_chain"]
    if chain is not None:
        name = f" {quoted(chain['name'])}" if chain["name"] else ""
        default = " (the default one)" if chain["default"] else ""
        tree.add(1, _TAKEN, f"filter chain{name}{default}, {'TLS' if chain['tls'] else 'plaintext'}", chain["path"])
    filters = plain.get("network_filters", [])
    if filters:
        tree.add(2, _PLAIN, "network filters: " + ", ".join(each["name"] for each in filters))


def _normalized(tree: _Tree, request: Plain, normal: Plain) -> None:
    changed = [f"{name} {normal[name]}" for name in ("authority", "path") if normal[name] not in ("", request[name])]
    changed.append(f"client {normal['downstream_remote_address']} ({'internal' if normal['internal'] else 'external'})")
    tree.add(2, _PLAIN, "request taken as: " + ", ".join(changed))


def _routes(tree: _Tree, plain: Plain) -> None:
    tree.passed(2, "virtual host", plain["virtual_hosts_passed_over"])
    host = plain["virtual_host"]
    if host is not None:
        text = f"virtual host {quoted(host['name'])}, whose domain {host['domain']} matches"
        tree.add(2, _TAKEN, text, host["path"])
    tree.passed(3, "route", plain["routes_passed_over"])
    route = plain["route"]
    if route is not None:
        text = f"{_label('route', route)}: {'; '.join(route['conditions'])}"
        tree.add(3, _TAKEN, text, route["path"])


def _split(tree: _Tree, depth: int, split: Plain | None) -> None:
    if split is None:
        return
    number = "" if split["number"] is None else f" ({split['number']})"
    tree.add(depth, _PLAIN, f"split by {split['method']}; what decides is {split['decided_by']}{number}")
    for each in split["clusters"]:
        by_chance = " this time" if each["taken"] and not split["sticky"] else ""
        mark = _TAKEN if each["taken"] else _PLAIN
        text = f"cluster {quoted(each['name'])}: {each['share'] * 100:.4g} % (weight {each['weight']}){by_chance}"
        tree.add(depth + 1, mark, text)


def _filters(tree: _Tree, depth: int, filters: list[Plain]) -> None:
    for each in filters:
        reason = f": {each['reason']}" if "reason" in each else ""
        tree.add(depth, _PLAIN if each["runs"] else _PASSED, f"filter {each['name']}{reason}")


def _cluster(tree: _Tree, depth: int, cluster: Plain | None) -> None:
    if cluster is None:
        return
    by_hash = f", by the hash {cluster['hash']}" if "hash" in cluster else ""
    metadata = f", of hosts with {cluster['metadata_match']}" if "metadata_match" in cluster else ""
    text = f"cluster {quoted(cluster['name'])}: {cluster['lb_policy']}{by_hash}{metadata}"
    tree.add(depth, _TAKEN, text, cluster["path"])
    for each in cluster["hosts"]:
        tree.add(depth + 1, _PLAIN if each["healthy"] else _PASSED, _host(each))
    if not cluster["hosts"]:
        tree.add(depth + 1, _PASSED, "no host")


def _host(host: Plain) -> str:
    parts = [f"host {host['address']}", host["health"], f"weight {host['weight']}", f"priority {host['priority']}"]
    if host["hostname"]:
        parts.append(host["hostname"])
    if host["locality"]:
        parts.append(f"in {host['locality']}")
    return ", ".join(parts)


def _outcome(tree: _Tree, outcome: Plain) -> None:
    tree.add(0, _RESULT, outcome["reason"])
    if outcome.get("body"):
        tree.add(1, _PLAIN, quoted(outcome["body"]))
    upstream = outcome.get("upstream_request")
    if upstream is not None:
        tree.add(1, _PLAIN, f"the upstream sees the path {upstream['path']} for {upstream['authority']}")
