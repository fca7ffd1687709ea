"""Generates meshproxy/api from the .proto files in xds/: `python -m tools.generate_api` (needs grpcio-tools 1.75 and
xds-protos, whose messages may be imported).

The version matters: generated code runs with the protobuf that it was made by, and newer ones.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
IMPORTED: tuple[FileDescriptor, ...] = (secret_pb2.DESCRIPTOR,)  # Envoy's files that ours import


def main() -> int:
    sources = sorted((ROOT / "xds").rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    with tempfile.NamedTemporaryFile(suffix=".binpb") as envoy:
        envoy.write(descriptors().SerializeToString())
        envoy.flush()
        places = [f"-I{ROOT / 'xds'}", f"-I{well_known}", f"--descriptor_set_in={envoy.name}"]
        outputs = [f"--python_out={ROOT}", f"--pyi_out={ROOT}"]
        return int(protoc.main(["protoc", *places, *outputs, *map(str, sources)]))


def descriptors() -> FileDescriptorSet:
    """Of the imported files, and all that these import, each behind what it needs."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for needed in file.dependencies:
            add(needed)
        found.setdefault(file.name, file)

    for file in IMPORTED:
        add(file)
    held = FileDescriptorSet()
    for each in found.values():
        each.CopyToProto(held.file.add())
    return held


if __name__ == "__main__":
    sys.exit(main())
