"""Where a route's requests are mirrored to: its `request_mirror_policies`, or those of its virtual host or table."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.inline_headers import INLINE_REQUEST_HEADERS
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.runtime import Fraction
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_mutation import Mutation, build_mutation


class MirrorPolicy:
    """One RequestMirrorPolicy: a cluster, and what distinguishes the request that it is sent."""

    def __init__(self) -> None:
        self.cluster_name: str = ""
        self.cluster_header: bytes = b""
        self.fraction: Fraction | None = None  # None: every request
        self.suffixes_host: bool = True
        self.host: bytes = b""  # host_rewrite_literal
        self.mutations: list[Mutation] = []

    def samples(self, random: int) -> bool:
        """Whether the request that drew `random` is mirrored."""
        return self.fraction is None or self.fraction.sample(random)

    def resolve_cluster(self, headers: HeaderMap) -> str:
        """The cluster's name; "" where the header that holds it is missing."""
        if not self.cluster_header:
            return self.cluster_name
        value = headers.get(self.cluster_header)
        return "" if value is None else value.decode("latin-1")

    def finalize(self, headers: HeaderMap, info: StreamInfo) -> None:
        """Change the shadow's headers: the mutations, then the host (whose suffix stands before its port)."""
        for mutation in self.mutations:
            mutation.apply(headers, info)
        if self.host:
            headers.set(b":authority", self.host)
        elif self.suffixes_host:
            host, colon, port = split_port(headers.get(b":authority") or b"")
            headers.set(b":authority", host + b"-shadow" + colon + port)


def split_port(authority: bytes) -> tuple[bytes, bytes, bytes]:
    """Host, colon and port; the last two are empty where there is no port."""
    cut = authority.rfind(b":")
    if cut < 0 or authority.endswith(b"]"):
        return authority, b"", b""
    return authority[:cut], b":", authority[cut + 1 :]


def build_mirrors(
    messages: Any, path: str, context: BuildContext, referenced: list[tuple[str, str]]
) -> list[MirrorPolicy] | None:
    """Compile a repeated RequestMirrorPolicy; None when there are none.

    `path` is that of the message around them. The clusters that they name are added to `referenced`, with their paths.
    """
    built: list[MirrorPolicy] = []
    for index in range(len(messages)):
        where = item(path, "request_mirror_policies", index)
        built.append(_build_mirror(messages[index], where, context))
        if messages[index].cluster:
            referenced.append((messages[index].cluster, child(where, "cluster")))
    return built or None


def _build_mirror(message: Any, path: str, context: BuildContext) -> MirrorPolicy:
    policy = MirrorPolicy()
    if bool(message.cluster) == bool(message.cluster_header):
        context.errors.add(path, "exactly one of cluster and cluster_header must be set")
    policy.cluster_name = message.cluster
    name = message.cluster_header.lower().encode()
    policy.cluster_header = b":authority" if name == b"host" else name
    if message.HasField("runtime_fraction"):
        policy.fraction = context.runtime.fraction(message.runtime_fraction)
    policy.suffixes_host = not message.disable_shadow_host_suffix_append
    policy.host = message.host_rewrite_literal.encode()
    for index in range(len(message.request_headers_mutations)):
        where = item(path, "request_headers_mutations", index)
        mutation = build_mutation(
            message.request_headers_mutations[index], where, INLINE_REQUEST_HEADERS, context.errors
        )
        if mutation is not None:
            policy.mutations.append(mutation)
    return policy
