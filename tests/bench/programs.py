"""Programs that the benchmark measures or loads with; a test that needs one which is not installed is skipped."""

from __future__ import annotations

import shutil

import pytest

from bench.peers import PeerError, installed


def needs(*programs: str) -> pytest.MarkDecorator:
    """`make bench` installs them, `make test` does not."""
    missing = [program for program in programs if not _is_there(program)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _is_there(program: str) -> bool:
    try:
        return bool(shutil.which(program) or installed(program))
    except PeerError:
        return False
