"""The configuration that is shown: examples/canary/envoy.yaml, rendered with free ports and other weights.

Only numbers are replaced, in the text, so that comments stay and the rendered file reads like the example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

ADMIN_PORT: Final = 9901
LISTENER_PORT: Final = 10000
# The instances behind the proxy, by the port at which the example looks for them.
INSTANCES: Final = {8101: "v1-a", 8102: "v1-b", 8201: "v2-a", 8202: "v2-b"}
LISTENER: Final = "shop"
STAT_PREFIX: Final = "shop"

_PORT: Final = re.compile(r"(port_value: )(\d+)")
_WEIGHT: Final = re.compile(r"(\{ name: shop-(v1|v2), weight: )\d+")


class ExampleError(Exception):
    """The configuration is not one that the demonstration can show."""


def read_example(path: str) -> str:
    """The text of the file at `path`, or of the canary example for "". Raises ExampleError when it cannot be read."""
    try:
        if path:
            return Path(path).read_text(encoding="utf-8")
        return resources.files("meshproxy.demo").joinpath("envoy.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExampleError(f"cannot read the configuration: {error}") from error


def with_ports(text: str, ports: Mapping[int, int]) -> str:
    """`text` with each port of the example replaced. Raises ExampleError when it does not hold exactly those ports."""
    found = sorted(int(match[2]) for match in _PORT.finditer(text))
    if found != sorted(ports):
        raise ExampleError(f"the demonstration needs the ports {sorted(ports)} once each, the file has {found}")
    return _PORT.sub(lambda match: f"{match[1]}{ports[int(match[2])]}", text)


def with_canary_share(text: str, percent: int) -> str:
    """`text` with `percent` of the iOS users on v2. Raises ExampleError when it has not one weight for each version."""
    weights = {"v1": 100 - percent, "v2": percent}
    changed, count = _WEIGHT.subn(lambda match: f"{match[1]}{weights[match[2]]}", text)
    if count != len(weights):
        raise ExampleError("the demonstration needs one `{ name: shop-v1, weight: N }` and one of shop-v2")
    return changed
