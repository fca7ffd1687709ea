"""Who is who on the stage: tokens that say so, as a platform gives them to its workloads, and the authority's root."""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshproxy.demo.processes import DemoError, Processes
from meshproxy.demo.rules import NAMESPACE

ISSUER: Final = "https://platform.demo.example"
AUDIENCE: Final = "istio-ca"
_TOKEN_S: Final = 3600
_KEY_ID: Final = "demo"


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long certificates last, and a new root is trusted before it signs."""

    certificate_s: float
    root_overlap_s: float


class Platform:
    """What Kubernetes is to a mesh: it knows which process is which workload, and signs a token that says so. All of it
    lies in one directory: `key_set` is what others verify tokens by."""

    def __init__(self, directory: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from jwt.algorithms import ECAlgorithm

        self.directory = directory
        directory.mkdir(mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.key_set = directory / "jwks.json"
        public = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        self.key_set.write_text(json.dumps({"keys": [{**public, "kid": _KEY_ID, "alg": "ES256", "use": "sig"}]}))

    def token(self, name: str, account: str) -> Path:
        """A file with the token of a workload."""
        import jwt

        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": f"system:serviceaccount:{NAMESPACE}:{account}",
            "iat": now,
            "exp": now + _TOKEN_S,
            "jti": secrets.token_hex(16),
        }
        path = self.directory / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text(jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": _KEY_ID}))
        return path


class Authority:
    """The store of the pilot's authority; `roots` is the file of those whom agents believe at first."""

    def __init__(self, processes: Processes, directory: Path) -> None:
        self._processes = processes
        self.store = directory / "authority"
        self.passphrase = directory / "passphrase"
        self.roots = directory / "roots.pem"
        descriptor = os.open(self.passphrase, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))

    async def begin(self) -> None:
        """Make its root. Raises DemoError."""
        await self._run("init")
        self.roots.write_text(await self._run("roots"), encoding="ascii")

    async def rotate(self) -> None:
        """Make the next root, which signs when all have had time to hear of it. Raises DemoError."""
        await self._run("rotate")

    @property
    def flags(self) -> list[str]:
        """Where it is."""
        return ["--authority", str(self.store), "--authority-passphrase-file", str(self.passphrase)]

    async def _run(self, verb: str) -> str:
        name = f"authority-{verb}"
        child = self._processes.start(name, "meshproxy", "authority", verb, *self.flags)
        if await child.ended() != 0:
            raise DemoError(f"meshproxy authority {verb} failed:\n{child.log_end()}")
        return child.output.read_text(encoding="utf-8")
