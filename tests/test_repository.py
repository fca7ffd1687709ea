"""The repository as it is checked out: nothing at its root hides an installed package, nothing stale is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import meshproxy

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {".git", ".venv"}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in the root of the repository, with the root on its path as `python -m` has it."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )


def test_the_version_command_runs_from_the_root() -> None:
    done = run_python("-m", "meshproxy", "version")
    assert done.returncode == 0, done.stderr
    assert meshproxy.__version__ in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "envoy.config.bootstrap.v3.bootstrap_pb2",
        "envoy.service.discovery.v3.discovery_pb2",
        "udpa.type.v1.typed_struct_pb2",
        "xds.type.v3.typed_struct_pb2",
        "validate.validate_pb2",
    ],
)
def test_the_envoy_api_is_importable_from_the_root(module: str) -> None:
    done = run_python("-c", f"import {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["filters", "xds"])
def test_a_folder_named_like_an_installed_package_is_not_one(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_compiled_module_lies_in_the_tree() -> None:
    found: list[Path] = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name not in NOT_OURS]
        found += [Path(folder, name) for name in files if name.endswith((".so", ".pyd"))]
    assert found == []


def test_a_checkout_runs_its_source() -> None:
    done = run_python("-c", "import meshproxy; print(meshproxy.__file__, meshproxy.is_compiled())")
    assert done.stdout.split() == [str(ROOT / "meshproxy" / "__init__.py"), "False"]


def test_the_names_for_filters_are_those_of_the_contract() -> None:
    from meshproxy.http import filter as contract
    from meshproxy.http import user_filter

    assert meshproxy.HttpFilter is user_filter.HttpFilter
    assert (meshproxy.CONTINUE, meshproxy.STOP) == (contract.CONTINUE, contract.STOP)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = meshproxy.no_such_name  # type: ignore[attr-defined]
