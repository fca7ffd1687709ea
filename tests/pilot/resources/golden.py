"""`python -m tests.pilot.resources.golden`: writes xds/golden anew, what the sample rules come to.

A file for each sample has the resources that the sample changes or adds, for the proxy of productpage (or of the edge)
with explicit listeners (of the Sidecar and of mutual TLS: behind interception); `services.<mode>.yaml` what the
services alone come to.
"""

from __future__ import annotations

from dataclasses import replace

from meshproxy.pilot.proxy import EXPLICIT, GATEWAY, GRPC, SIDECAR
from tests.pilot.resources.support import ROOT, RULES, SHOP_PAGE, as_yaml, mesh_of, sample, snapshot_of

GOLDEN = ROOT / "xds" / "golden"
SERVICES = "services"
MODES = (SIDECAR, EXPLICIT, GRPC)
WITH_AGENT = (("meshproxy.io/sds-cluster", "sds-grpc"), ("product", "meshproxy"))
EDGE = replace(SHOP_PAGE, mode=GATEWAY, labels=(("app", "edge"),), ips=("10.1.0.90",), metadata=WITH_AGENT)
PROXIES = {
    "gateway": EDGE,
    "mutual-tls": replace(SHOP_PAGE, metadata=WITH_AGENT),
    "sidecar": SHOP_PAGE,
    "tls": replace(SHOP_PAGE, mode=EXPLICIT, metadata=WITH_AGENT),
}
SAMPLES = sorted(path.stem for path in RULES.glob("*.yaml") if path.stem != SERVICES)


def golden_files() -> dict[str, str]:
    """The files' names and texts, as they ought to be."""
    services = mesh_of(sample(SERVICES))
    files = {f"{SERVICES}.{mode}.yaml": as_yaml(snapshot_of(services, replace(SHOP_PAGE, mode=mode))) for mode in MODES}
    for name in SAMPLES:
        proxy = PROXIES.get(name, replace(SHOP_PAGE, mode=EXPLICIT))
        snapshot = snapshot_of(mesh_of(sample(SERVICES, name)), proxy)
        files[f"{name}.yaml"] = as_yaml(snapshot, besides=snapshot_of(services, proxy))
    return files


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.yaml"):
        path.unlink()
    for name, text in golden_files().items():
        (GOLDEN / name).write_text(text)


if __name__ == "__main__":
    main()
