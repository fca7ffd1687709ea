"""A/B assignment that stays: each user is given a variant once, in a cookie that only this filter can make."""

from __future__ import annotations

import hmac
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Literal

from meshproxy import HeaderMap, HttpFilter, Stream


@dataclass(frozen=True)
class Config:
    """`variants` are weights: {"old": 95, "new": 5}. A variant that is left out later is assigned anew."""

    experiment: str
    key: str
    variants: dict[str, int]
    header: str = "x-variant"
    cookie: str = ""
    lifetime: timedelta = timedelta(days=30)
    secure: bool = True
    same_site: Literal["Strict", "Lax", "None"] = "Lax"

    def __post_init__(self) -> None:
        if len(self.key) < 16:
            raise ValueError("key: at least 16 characters")
        if not self.variants or min(self.variants.values()) < 0 or not sum(self.variants.values()):
            raise ValueError("variants: at least one needs a weight above 0, and none may be below")
        if not all(name.isascii() and name.replace("-", "").replace("_", "").isalnum() for name in self.variants):
            raise ValueError("variants: names are made of letters, digits, - and _")


class AbCookie(HttpFilter):
    """Tells routes and upstreams the variant in a header, which clients cannot set themselves."""

    config: Config

    def __init__(self) -> None:
        self._set_cookie: bytes = b""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        config = self.config
        variant = self._assigned(headers)
        if variant is None:
            (variant,) = random.choices(list(config.variants), list(config.variants.values()))
            self._set_cookie = self._make_cookie(variant)
            self.context.count(f"assigned.{variant}")
        headers[config.header.encode()] = variant.encode()
        stream.metadata("ab")[config.experiment] = variant
        stream.clear_route_cache()  # routes may match on the header

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        if self._set_cookie:
            headers.add(b"set-cookie", self._set_cookie)

    def _assigned(self, headers: HeaderMap) -> str | None:
        """The variant in a cookie that we made, which has not expired and still has a weight."""
        name = self._cookie_name()
        for line in headers.get_all(b"cookie"):
            for pair in line.split(b";"):
                key, _, value = pair.strip().partition(b"=")
                variant = self._checked(value) if key == name else None
                if variant is not None:
                    return variant
        return None

    def _checked(self, value: bytes) -> str | None:
        text, _, signature = value.rpartition(b".")
        if not hmac.compare_digest(signature, self._sign(text)):
            return None
        variant, _, expires = text.decode().partition(".")
        return variant if self.config.variants.get(variant) and int(expires) > time.time() else None

    def _make_cookie(self, variant: str) -> bytes:
        config = self.config
        seconds = int(config.lifetime.total_seconds())
        text = f"{variant}.{int(time.time()) + seconds}".encode()
        flags = f"; Path=/; Max-Age={seconds}; HttpOnly; SameSite={config.same_site}" + "; Secure" * config.secure
        return self._cookie_name() + b"=" + text + b"." + self._sign(text) + flags.encode()

    def _cookie_name(self) -> bytes:
        return (self.config.cookie or f"ab-{self.config.experiment}").encode()

    def _sign(self, text: bytes) -> bytes:
        """The experiment is signed too, so that a cookie of one is no assignment in another."""
        signed = self.config.experiment.encode() + b"\0" + text
        return hmac.new(self.config.key.encode(), signed, sha256).hexdigest()[:32].encode()
