"""The import direction: an import may only point down `LAYERS` (docs/ARCHITECTURE.md), and asyncio stays behind `net`.

Every `import` statement counts: in functions, and under TYPE_CHECKING too, since a type is a dependency as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent

# From the top down. One line is one rank: those on it may not import one another.
LAYERS: Final = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("testing",),
    ("agent",),
    ("pilot",),
    ("server",),
    ("xds",),
    ("rpc",),
    ("filters",),
    ("http",),
    ("upstream",),
    ("rbac",),
    ("matching",),
    ("route",),
    ("config",),
    ("observe",),
    ("tls",),
    ("net",),
    ("codec",),
    ("api",),
    ("errors", "clock", "version", "completion", "scaffold"),
)
RANK: Final = {name: rank for rank, names in enumerate(reversed(LAYERS)) for name in names}

# Narrower than the order: codecs are sans-io and stand alone.
ONLY_IMPORTS: Final = {"codec": frozenset({"codec", "errors"})}

# What listener filters implement stands beside them; those of the other kinds have theirs in http/.
LISTENER_FILTER_CONTRACT: Final = "meshproxy.filters.listener_filter"

# The package itself is the face for users (`from meshproxy import HttpFilter`); nothing inside may import it back.
FACADE: Final = ""

EVENT_LOOPS: Final = frozenset({"asyncio", "uvloop"})
MAY_IMPORT_EVENT_LOOPS: Final = frozenset({"cli", "demo", "agent", "pilot", "testing", "server", "xds", "rpc", "net"})


def violations(root: Path) -> list[str]:
    """What is wrong under `root`/meshproxy, one line each: `file:line: reason`."""
    found: list[str] = []
    for path in sorted((root / "meshproxy").rglob("*.py")):
        module = module_of(path, root)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, target in imported_modules(tree, path, root):
            reason = why_wrong(module, target)
            if reason is not None:
                found.append(f"{path.relative_to(root)}:{line}: {reason}")
    return found


def module_of(path: Path, root: Path) -> str:
    """The dotted name of the module in `path`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in `tree`, which stands in `path`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, path, root)
            for alias in node.names:
                # `from package import module` imports the module; `from module import name` the module before it.
                submodule = root.joinpath(*base.split("."), alias.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def absolute_base(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """The module after `from`, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = path.relative_to(root).parent.parts
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def why_wrong(module: str, target: str) -> str | None:
    """Why `module` may not import `target`, or None."""
    source = layer_of(module)
    if target.partition(".")[0] in EVENT_LOOPS:
        allowed = source in MAY_IMPORT_EVENT_LOOPS
        return None if allowed else f"{module} imports {target}; the event loop is reached through meshproxy.net"
    if target.partition(".")[0] != "meshproxy":
        return None
    if source == FACADE:
        return None
    return wrong_direction(module, source, target, layer_of(target))


def wrong_direction(module: str, source: str, target: str, layer: str) -> str | None:
    """Why `module` (in layer `source`) may not import `target` (in `layer`), or None."""
    if source not in RANK:
        return f"{module} has no place in the import order"
    if layer == FACADE:
        return f"{module} imports the face of the package; import the module that defines the name"
    if source in ONLY_IMPORTS and layer not in ONLY_IMPORTS[source]:
        return f"{module} imports {target}; {source} may import only {', '.join(sorted(ONLY_IMPORTS[source]))}"
    if source == "filters" == layer and crosses_filters(module, target):
        return f"{module} imports {target}; filters never import one another"
    if layer == source or RANK.get(layer, len(LAYERS)) < RANK[source]:
        return None
    return f"{module} imports {target}, which does not stand below it"


def crosses_filters(module: str, target: str) -> bool:
    """True when one filter's file imports another's; a package's `__init__` gathers its own, `builtin` gathers all."""
    if target == LISTENER_FILTER_CONTRACT:
        return False
    return module not in (target, "meshproxy.filters.builtin") and not target.startswith(f"{module}.")


def layer_of(module: str) -> str:
    """The part of the dotted name that LAYERS ranks: the folder or file right under the package."""
    return module.partition(".")[2].partition(".")[0]


def test_every_import_of_the_package_points_down() -> None:
    assert violations(ROOT) == []


def test_every_module_has_a_place_in_the_order() -> None:
    modules = {layer_of(module_of(path, ROOT)) for path in (ROOT / "meshproxy").rglob("*.py")}
    assert modules - {FACADE} <= RANK.keys()


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("codec/http1.py", "from meshproxy.net.timers import Timer", "codec may import only codec, errors"),
        ("codec/http1.py", "import meshproxy.clock", "codec may import only codec, errors"),
        ("route/table.py", "from meshproxy import upstream", "does not stand below it"),
        ("route/table.py", "import meshproxy.upstream.cluster", "does not stand below it"),
        ("route/table.py", "from ..upstream import cluster", "does not stand below it"),
        ("route/table.py", "def f():\n    from meshproxy.upstream.cluster import Cluster", "does not stand below it"),
        ("config/build.py", "if TYPE_CHECKING:\n    from meshproxy.filters.http import cors", "does not stand below"),
        ("errors.py", "from meshproxy.clock import now", "does not stand below it"),
        ("http/chain.py", "from meshproxy import HttpFilter", "the face of the package"),
        ("http/chain.py", "import asyncio", "reached through meshproxy.net"),
        ("upstream/pool.py", "from asyncio import Task", "reached through meshproxy.net"),
        ("filters/http/cors.py", "import uvloop", "reached through meshproxy.net"),
        ("filters/http/cors.py", "from meshproxy.filters.http import fault", "never import one another"),
        ("filters/http/cors.py", "from .fault import Fault", "never import one another"),
        ("filters/http/cors.py", "from meshproxy.filters.network.rbac import Rbac", "never import one another"),
        ("helpers.py", "import meshproxy.errors", "no place in the import order"),
        ("http/chain.py", "import meshproxy.helpers", "does not stand below it"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, reason: str) -> None:
    write_package(tmp_path, file, source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert reason in found[0]
    assert found[0].startswith(f"meshproxy/{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("codec/http1.py", "from meshproxy.codec.headers import Headers\nfrom meshproxy import errors"),
        ("net/loop.py", "import asyncio\nimport uvloop"),
        ("http/chain.py", "import ssl\nfrom meshproxy.route import table\nfrom .filter import HttpFilter"),
        ("filters/http/__init__.py", "from meshproxy.filters.http import cors"),
        ("filters/http/cors.py", "from meshproxy.http.filter import HttpFilter"),
        ("filters/listener/tls.py", "from meshproxy.filters.listener_filter import ListenerFilter"),
        ("server/run.py", "import asyncio\nfrom meshproxy.filters.http import cors, fault\nimport xds.core.v3"),
        ("__init__.py", "from meshproxy.http.filter import HttpFilter"),
    ],
)
def test_a_right_import_is_left_alone(tmp_path: Path, file: str, source: str) -> None:
    write_package(tmp_path, file, source)
    assert violations(tmp_path) == []


def write_package(root: Path, file: str, source: str) -> None:
    """A package of empty files under `root`, with `source` in one of them."""
    for name in ("codec/headers.py", "upstream/cluster.py", "route/table.py", "filters/http/cors.py", "errors.py"):
        path = root / "meshproxy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("filters/http/fault.py", "http/filter.py"):
        path = root / "meshproxy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    target = root / "meshproxy" / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source, encoding="utf-8")
