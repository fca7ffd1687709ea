"""Compiles the hot modules with mypyc when a wheel is built; everything else stands in pyproject.toml.

Without a C compiler, or when compiling fails, the wheel is pure Python and says so in one line. An editable install is
never compiled: a checkout under edit runs its source. `MESHPROXY_PURE=1` skips compiling, and
`MESHPROXY_REQUIRE_COMPILED=1` (tools/build_compiled.py) turns the fallback into a failure.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution
from setuptools.errors import CCompilerError, ExecError, PlatformError

ROOT = Path(__file__).resolve().parent

# The one list of what is compiled: the request path. Patterns are relative to this file.
HOT = (
    "meshproxy/clock.py",
    "meshproxy/errors.py",
    "meshproxy/codec/**/*.py",
    "meshproxy/config/string_matcher.py",
    "meshproxy/http/**/*.py",
    "meshproxy/matching/**/*.py",
    "meshproxy/net/**/*.py",
    "meshproxy/observe/access_log.py",
    "meshproxy/observe/formatter.py",
    "meshproxy/observe/histogram.py",
    "meshproxy/observe/operators.py",
    "meshproxy/observe/response_flags.py",
    "meshproxy/observe/start_time.py",
    "meshproxy/observe/stats.py",
    "meshproxy/observe/stream_info.py",
    "meshproxy/observe/value_text.py",
    "meshproxy/observe/wire.py",
    "meshproxy/rbac/*.py",
    "meshproxy/route/**/*.py",
    "meshproxy/rpc/*.py",
    "meshproxy/tls/engine.py",
    "meshproxy/upstream/**/*.py",
    "meshproxy/filters/http/*.py",
    "meshproxy/filters/network/*.py",
)
# Modules under HOT that stay Python source: they run when configuration arrives, not per request, or do not compile.
NOT_COMPILED: frozenset[str] = frozenset({
    "meshproxy/http/extension_discovery.py",  # as are all who watch resources of a control plane: see http/rds.py
    "meshproxy/http/grpc/methods.py",  # its generic classes crash when they are compiled (mypyc 2.4)
    "meshproxy/http/rds.py",  # its classes derive from one of config/, which is not compiled
    "meshproxy/http/user_classes.py",
    "meshproxy/http/user_filter.py",  # the file says why
    "meshproxy/http/vhds.py",
    "meshproxy/net/slices.py",
    "meshproxy/upstream/eds.py",  # as http/rds.py
    "meshproxy/upstream/on_demand.py",
})

# Types are checked strictly elsewhere (`make lint`); here a newer mypy's opinion must not stop an installation.
MYPY_FLAGS = ("--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--python-version=3.11")
PROBE = "#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n"
BUILD_ERRORS = (CCompilerError, ExecError, PlatformError, OSError)
BUILDS_BINARIES = frozenset({"bdist_wheel", "build", "build_ext", "install"})


def hot_modules() -> list[str]:
    """The files to compile, relative to the root and sorted; an `__init__.py` only re-exports, so it is left out."""
    found = {path.relative_to(ROOT).as_posix() for pattern in HOT for path in ROOT.glob(pattern)}
    return sorted(name for name in found - NOT_COMPILED if not name.endswith("__init__.py"))


class ParallelBuildExt(build_ext):
    """build_ext on every core (mypyc makes one extension of many C files); a failure leaves a pure build."""

    def run(self) -> None:
        try:
            super().run()
        except BUILD_ERRORS as error:
            self.extensions = self.distribution.ext_modules = []
            for partial in Path(self.build_lib).rglob("*.so"):
                partial.unlink()
            fall_back(f"compiling failed ({str(error).splitlines()[0]})")

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                built = pool.map(lambda source: compile_one([source], **options), sources)
                return [name for names in built for name in names]

        self.compiler.compile = compile_all
        super().build_extensions()


def compiler_problem() -> str | None:
    """Why C does not compile here, or None: tried on one line of Python's C API before mypyc spends minutes."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(PROBE, encoding="utf-8")
        command = build_ext(Distribution({"name": "probe", "ext_modules": [Extension("probe", [str(source)])]}))
        command.build_temp = command.build_lib = scratch
        try:
            command.ensure_finalized()
            command.run()
        except BUILD_ERRORS as error:
            return str(error).splitlines()[0]
    return None


def fall_back(reason: str) -> list[Extension]:
    """Say in one line that this build is pure Python, or stop where a compiled one is required."""
    if os.environ.get("MESHPROXY_REQUIRE_COMPILED") == "1":
        raise SystemExit(f"meshproxy: not compiled: {reason}")
    print(f"meshproxy: installing as pure Python, slower but complete: {reason}", file=sys.stderr)
    return []


def compiled_extensions() -> list[Extension]:
    """mypyc's extension modules for the hot modules, or none."""
    if not BUILDS_BINARIES & set(sys.argv[1:]):
        return []
    if os.environ.get("MESHPROXY_PURE") == "1":
        return fall_back("MESHPROXY_PURE=1")
    problem = compiler_problem()
    if problem is not None:
        return fall_back(f"no working C compiler ({problem})")
    try:
        from mypyc.build import mypycify

        extensions = mypycify(
            [*MYPY_FLAGS, *hot_modules()],
            opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"),
            debug_level="0",
            multi_file=True,
            group_name="meshproxy",
        )
    except ImportError as error:
        return fall_back(f"mypyc is missing ({error})")
    except SystemExit as error:  # mypyc ends the process on a type error
        return fall_back(f"mypyc refused the source ({error})")
    for extension in extensions:
        extension.extra_compile_args.append("-Wno-error")  # another compiler's warnings are no reason to be slow
        if os.name == "posix":  # calls among the modules, which are one library, are then calls, and can be inlined
            extension.extra_compile_args += ["-fvisibility=hidden", "-fno-semantic-interposition"]
    return extensions


setup(ext_modules=compiled_extensions(), cmdclass={"build_ext": ParallelBuildExt})
