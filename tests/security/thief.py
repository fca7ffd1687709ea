"""What whoever has taken both the store and the passphrase of an authority can make: any certificate."""

from __future__ import annotations

import asyncio

from cryptography.hazmat.primitives.asymmetric import ec

from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.material import make_material
from meshproxy.pilot.authority.memory import Memory
from tests.pilot.authority_mesh import Mesh
from tests.tls.certificates import Issued


def stolen_root(mesh: Mesh) -> Issued:
    """The one that signs now, with its key."""
    passphrase = (mesh.folder / "passphrase").read_bytes()
    found = asyncio.run(Memory(DirectoryStore(str(mesh.folder / "ca")), passphrase).read())
    assert found is not None
    signing = make_material(found.state, found.seal, "the thief's").signing
    assert signing is not None
    signer = signing[1]
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    return Issued(signer.certificate, signer.key)
