"""An admin request and its answer, as handlers see them."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable
from typing import Any, Final

TEXT: Final = "text/plain; charset=UTF-8"
PLAIN_TEXT: Final = "text/plain"  # some errors of Envoy's come without a charset
HTML: Final = "text/html; charset=UTF-8"
JSON: Final = "application/json"


class AdminRequest:
    """`params` has the first value of every query parameter, percent-decoded; "+" stands for itself, as in Envoy."""

    def __init__(self, method: str, target: str, content_type: str = "", body: bytes = b"") -> None:
        path, _, query = target.partition("?")
        self.method = method
        self.target = target
        self.path = path
        self.params = parse_params(query)
        self.content_type = content_type
        self.body = body

    def form(self) -> dict[str, str]:
        """The parameters of an url-encoded body; none when it is of another type."""
        if self.content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
            return {}
        return parse_params(self.body.decode("utf-8", "surrogateescape"))


class AdminResponse:
    """`body` is produced piece by piece while the client takes it; no piece may cost more than a few milliseconds."""

    def __init__(self, body: Iterable[str] = (), status: int = 200, content_type: str = TEXT) -> None:
        self.body: Iterable[str] = (body,) if isinstance(body, str) else body
        self.status = status
        self.content_type = content_type


class AdminError(Exception):
    """Ends a handler with this answer."""

    def __init__(self, status: int, text: str, content_type: str = TEXT) -> None:
        super().__init__(text)
        self.response = AdminResponse(text, status, content_type)


def parse_params(query: str) -> dict[str, str]:
    """`a=1&b` as {"a": "1", "b": ""}; the first of equal names counts."""
    params: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        params.setdefault(_decode(name), _decode(value))
    return params


def json_response(value: Any) -> AdminResponse:
    """A small JSON answer, indented as Envoy's."""
    return AdminResponse(json.dumps(value, indent=1, ensure_ascii=False) + "\n", content_type=JSON)


def _decode(text: str) -> str:
    return urllib.parse.unquote(text, "utf-8", "surrogateescape")
