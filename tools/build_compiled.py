"""Compile the hot modules of this checkout, outside the tree, and print the directory to put first on PYTHONPATH.

The directory lies in the user's cache and is named by a hash of everything that went into it (source, Python, mypy,
compiler settings), so a second run finds it, and a changed source never meets an old build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT_BUILDS = 3
BUILD_SETTINGS = ("CC", "CFLAGS", "LDFLAGS", "MYPYC_OPT_LEVEL")


def cache_folder() -> Path:
    """Where builds are kept: `$XDG_CACHE_HOME/meshproxy`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshproxy"


def inputs() -> list[Path]:
    """Every file that decides what a build holds."""
    package = [path for path in (ROOT / "meshproxy").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted([*package, ROOT / "setup.py", ROOT / "pyproject.toml"])


def fingerprint(files: list[Path]) -> str:
    """The hash that names the build of `files` with this Python and this mypy."""
    digest = hashlib.sha256()
    tools = (sys.version, metadata.version("mypy"), metadata.version("setuptools"), str(sysconfig.get_platform()))
    for setting in (*tools, *(os.environ.get(name, "") for name in BUILD_SETTINGS)):
        digest.update(setting.encode() + b"\0")
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def build(files: list[Path], target: Path) -> None:
    """Compile a copy of `files`, then move it to `target` in one step, so that a build that stopped leaves none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as scratch:
        for path in files:
            copy = Path(scratch, path.relative_to(ROOT))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        log = Path(scratch, "build.log")
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                cwd=scratch,
                env=os.environ | {"MESHPROXY_REQUIRE_COMPILED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
            raise SystemExit("\n".join([*tail, "meshproxy: the compiled build failed; the reason stands above"]))
        shutil.rmtree(Path(scratch, "build"))
        Path(scratch).chmod(0o755)
        try:
            Path(scratch).rename(target)
        except OSError:
            if not target.exists():  # else another run was faster, with the same result
                raise
        Path(scratch).mkdir(exist_ok=True)  # for TemporaryDirectory to remove


def prune(folder: Path) -> None:
    """Keep the builds that were used last."""
    builds = sorted(folder.glob("build-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[KEPT_BUILDS:]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """Print the directory of the compiled build on stdout, after making it when it is missing."""
    files = inputs()
    target = cache_folder() / f"build-{fingerprint(files)}"
    if not target.exists():
        print("compiling the hot modules with mypyc (minutes; cached afterwards) ...", file=sys.stderr, flush=True)
        build(files, target)
    os.utime(target)
    prune(target.parent)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
