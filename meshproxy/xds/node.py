"""Who we are, as control planes are told."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3.base_pb2 import Node

from meshproxy.version import __version__


def own_node(node: Any) -> Node:
    """The bootstrap's node, and what it cannot know: which program this is."""
    own = Node()
    own.CopyFrom(node)
    own.user_agent_name = "meshproxy"
    own.user_agent_version = __version__
    return own
