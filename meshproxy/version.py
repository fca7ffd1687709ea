"""The version of this distribution, and whether its hot modules run compiled."""

from __future__ import annotations

import importlib.util
from typing import Final

__version__: Final = "0.1.0"

# A module that is always in the compiled set (HOT in setup.py) and imports nothing of ours.
_WITNESS: Final = "meshproxy.clock"


def is_compiled() -> bool:
    """True when the hot modules that this process imports are mypyc's extension modules, not Python source."""
    spec = importlib.util.find_spec(_WITNESS)
    return spec is not None and spec.origin is not None and spec.origin.endswith(".so")
