"""Accept-Encoding (RFC 9110 section 12.5.3): which of several codings a client shall get, by Envoy's rules."""

from __future__ import annotations

from typing import Final

IDENTITY: Final = b"identity"
_ANY: Final = b"*"

# What a choice is counted as.
NOT_VALID: Final = 0  # nothing that is offered is acceptable
NO_CODING: Final = 1  # the client would rather have none
WILDCARD: Final = 2
NAMED: Final = 3


class Choice:
    """`encoding` is the coding, `identity` for none; `kind` how it came to be chosen."""

    def __init__(self, encoding: bytes, kind: int) -> None:
        self.encoding = encoding
        self.kind = kind


def choose(accept_encoding: bytes, offers: dict[bytes, bool]) -> Choice:
    """The acceptable coding of the highest weight among `offers`, which are in order of preference for `*`.

    Among equal weights the first that the client names is taken, unless a later one is offered as `choose_first`.
    """
    wanted = parse(accept_encoding)
    allowed = dict(offers)
    for encoding, weight in wanted:
        if weight == 0.0:
            allowed.pop(encoding, None)
    if not wanted or not allowed:
        return Choice(IDENTITY, NOT_VALID)
    best, best_weight = IDENTITY, 0.0
    for encoding, weight in wanted:
        if (encoding in allowed or encoding in (IDENTITY, _ANY)) and (
            weight > best_weight or (weight == best_weight and allowed.get(encoding, False))
        ):
            best, best_weight = encoding, weight
    if best_weight == 0.0:
        return Choice(IDENTITY, NOT_VALID)
    if best == IDENTITY:
        return Choice(IDENTITY, NO_CODING)
    if best == _ANY:
        return Choice(next(iter(allowed)), WILDCARD)
    return Choice(best, NAMED)


def parse(accept_encoding: bytes) -> list[tuple[bytes, float]]:
    """Codings with their weights, in order. One whose weight is no number is left out; `q` counts only as the first
    parameter."""
    wanted: list[tuple[bytes, float]] = []
    for token in accept_encoding.split(b","):
        if not token:
            continue
        encoding, _, parameters = token.partition(b";")
        name, equals, value = parameters.partition(b"=")
        weight = 1.0
        if equals and name.strip().lower() == b"q":
            try:
                weight = float(value)
            except ValueError:
                continue
        wanted.append((encoding.strip(), weight))
    return wanted


def with_encoding(accept_encoding: bytes | None, encoding: bytes) -> bytes:
    """What a client accepts, with `encoding` added, at the full weight whatever it had."""
    tokens = [token.strip() for token in (accept_encoding or b"").split(b",")]
    kept = [token for token in tokens if token and token.partition(b";")[0].strip() != encoding]
    return b",".join([*kept, encoding])


def has_token(value: bytes | None, token: bytes) -> bool:
    """Whether `token`, in lower case, is one of a list's, in any case."""
    return value is not None and any(part.strip().lower() == token for part in value.split(b","))
