"""Generates meshproxy/api from the .proto files in xds/: `python -m tools.generate_api` (needs grpcio-tools 1.75).

The version matters: generated code runs with the protobuf that it was made by, and newer ones.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    sources = sorted((ROOT / "xds").rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    arguments = ["protoc", f"-I{ROOT / 'xds'}", f"-I{well_known}", f"--python_out={ROOT}", f"--pyi_out={ROOT}"]
    return int(protoc.main([*arguments, *map(str, sources)]))


if __name__ == "__main__":
    sys.exit(main())
