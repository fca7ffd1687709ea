"""A configuration of bench/configs with its `@PLACES@` filled, and the certificates that it points to."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Final

_CONFIGS: Final = Path(__file__).with_name("configs")
_VIRTUAL_HOSTS: Final = 10_000


def filled(file: str, **places: object) -> str:
    """The text of a file of bench/configs: `places` are filled, and @CERTIFICATES@ and @VIRTUAL_HOSTS@ if there."""
    text = (_CONFIGS / file).read_text(encoding="utf-8")
    for name, value in places.items():
        text = text.replace(f"@{name.upper()}@", str(value))
    if "@CERTIFICATES@" in text:
        text = text.replace("@CERTIFICATES@", certificates().name)
    if "@VIRTUAL_HOSTS@" in text:
        text = text.replace("@VIRTUAL_HOSTS@", json.dumps([_virtual_host(number) for number in range(_VIRTUAL_HOSTS)]))
    return text


def host_name(number: int) -> str:
    """The domain of a virtual host."""
    return f"service-{number}.bench.test"


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    """ca.pem, and `rsa` (2048 bits), `ecdsa` and `client` (P-256) as .pem and .key; gone when this process ends."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from tests.tls.certificates import dns, issue

    folder = tempfile.TemporaryDirectory(prefix="bench-certificates-")
    authority = issue("bench authority", ca=True)
    Path(folder.name, "ca.pem").write_bytes(authority.pem)
    rsa_key = rsa.generate_private_key(65537, 2048)
    for name, key in (("rsa", rsa_key), ("ecdsa", None), ("client", None)):
        issued = issue(name, authority, names=dns("bench.test"), key=key)
        Path(folder.name, f"{name}.pem").write_bytes(issued.pem)
        Path(folder.name, f"{name}.key").write_bytes(issued.key_pem)
    Path(folder.name).chmod(0o755)  # nginx reads them as root, and its workers are another user
    return folder


def _virtual_host(number: int) -> dict[str, object]:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]
    return {"name": f"service-{number}", "domains": [host_name(number)], "routes": routes}
