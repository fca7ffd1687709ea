"""What only the cyclic collector frees: on the request path that should be nothing (docs/performance.md)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_collected(package: str = "meshproxy.") -> Iterator[list[str]]:
    """Afterwards the list has the types of those objects of the package that only the collector could free."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = (type(each) for each in gc.garbage)
        found += sorted(kind.__name__ for kind in kinds if kind.__module__.startswith(package))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()
