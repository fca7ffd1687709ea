"""`meshproxy authority`: what it prints, what it changes, its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from meshproxy.cli import main
from meshproxy.pilot.authority import command
from meshproxy.pilot.authority.contract import Issued
from meshproxy.pilot.authority.settings import AuthoritySettings
from tests.pilot.authority.support import CALLER, CART, PASSPHRASE, Clock, opened, openssl, split, verify
from tests.pilot.sources.etcd import Etcd


class Run:
    """Runs the command on an authority of its own."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.passphrase = folder / "passphrase"
        self.passphrase.write_bytes(PASSPHRASE + b"\n")
        self.passphrase.chmod(0o600)
        self.store = ["--authority", str(folder / "ca")]
        self._capture = capture

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output; `errors` has the rest."""
        self._capture.readouterr()
        files = ["--authority-passphrase-file", str(self.passphrase), "--authority-audit", str(self.folder / "audit")]
        assert main(["authority", *arguments, *self.store, *files]) == code
        out, self.errors = self._capture.readouterr()
        return out

    def status(self) -> Any:
        return json.loads(self("status", "--json"))

    def phases(self) -> list[str]:
        return sorted(each["phase"] for each in self.status()["issuers"])

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.folder / "audit").read_text().splitlines()]

    def issue(self, settings: AuthoritySettings | None = None) -> Issued:
        """As a pilot on the same store."""

        async def once() -> Issued:
            async with opened(self.folder, settings, Clock(time.time())) as running:
                return await running.authority.issue(CALLER, 0)

        return asyncio.run(once())

    def bundle(self) -> tuple[bytes, bytes]:
        """Roots and CRL."""

        async def once() -> tuple[bytes, bytes]:
            async with opened(self.folder, None, Clock(time.time())) as running:
                bundle = running.authority.bundle()
                return bundle.roots, bundle.crl

        return asyncio.run(once())


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(command, "keep_memory_private", lambda: None)  # it would hold for the tests' process
    return Run(tmp_path, capsys)


# -- a root of our own


def test_init_makes_a_root_once(run: Run) -> None:
    assert run("init") == ""
    assert run.phases() == ["signing"]
    assert run("init", code=1) == ""
    assert "holds an authority already (of cluster.local)" in run.errors
    assert run.events() == ["issuer_signing"]


def test_the_roots_that_are_printed_are_those_of_the_bundle(run: Run) -> None:
    run("init", "--trust-domain", "cluster.local", "--authority-key", "P-384", "--root-lifetime", "30d")
    roots = run("roots")
    assert roots.encode() == run.bundle()[0]
    text = openssl("x509", "-noout", "-text", data=roots.encode())[1]
    assert "secp384r1" in text
    root = x509.load_pem_x509_certificate(roots.encode())
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days == 30


def test_status_says_what_there_is(run: Run) -> None:
    run("init")
    assert "trust domain cluster.local\n" in run("status")
    assert "  signing " in run("status")


def test_rotate_goes_step_by_step(run: Run) -> None:
    run("init")
    old = run("roots")
    run("rotate")
    assert run.phases() == ["signing", "trusted"]
    assert old in run("roots")
    assert len(split(run("roots").encode())) == 2
    run("rotate", code=1)
    assert "the next root is there" in run.errors
    run("rotate", "--now")
    assert run.phases() == ["retiring", "signing"]
    run("rotate", "--now")
    assert run.phases() == ["signing"]
    assert old not in run("roots")
    ways = ["issuer_forgotten", "issuer_retiring", "issuer_signing", "issuer_signing", "issuer_trusted"]
    assert sorted(run.events()) == ways


# -- revoking


def test_revoke_by_serial(run: Run, tmp_path: Path) -> None:
    run("init")
    bad, good = run.issue(), run.issue()
    serial = openssl("x509", "-noout", "-serial", data=split(bad.chain)[0])[1].strip().removeprefix("serial=")
    assert run("revoke", serial) == "revoked: 1\n"
    assert [each["serial"] for each in run.status()["revoked"]] == [f"{bad.serial:x}"]
    roots, crl = run.bundle()
    assert "certificate revoked" in verify(tmp_path, bad.chain, roots, crl=crl, at=time.time())
    assert verify(tmp_path, good.chain, roots, crl=crl, at=time.time()) == "OK"
    assert run.events()[-1] == "revoked"


def test_revoke_an_identity_and_readmit_it(run: Run) -> None:
    run("init")
    issued = [run.issue() for _ in range(3)]
    assert run("revoke", "--identity", CART.uri) == "revoked: 3\n"
    assert {int(each["serial"], 16) for each in run.status()["revoked"]} == {each.serial for each in issued}
    assert run.status()["barred"] == [CART.uri]
    run("readmit", CART.uri)
    assert run.status()["barred"] == []
    assert run.issue().serial not in {each.serial for each in issued}
    assert run.events()[-2:] == ["revoked", "readmitted"]


def test_what_is_not_out_cannot_be_revoked(run: Run) -> None:
    run("init")
    run("revoke", "AB:CD", code=1)
    assert "abcd: no certificate of this serial is out" in run.errors


# -- an intermediate of an outside authority


class Outside:
    """An authority that openssl plays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        arguments += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        arguments += ["-subj", "/CN=outside", "-keyout", str(folder / "root.key"), "-out", str(folder / "root.pem")]
        assert openssl(*arguments)[0] == 0

    def sign(self, csr: str) -> str:
        """The path of a chain."""
        (self.folder / "csr").write_text(csr)
        arguments = ["x509", "-req", "-in", str(self.folder / "csr"), "-days", "10", "-copy_extensions", "copy"]
        arguments += ["-CA", str(self.folder / "root.pem"), "-CAkey", str(self.folder / "root.key")]
        code, said = openssl(*arguments, "-out", str(self.folder / "signed.pem"))
        assert code == 0, said
        path = self.folder / "chain.pem"
        path.write_bytes((self.folder / "signed.pem").read_bytes() + (self.folder / "root.pem").read_bytes())
        return str(path)


def test_an_intermediate_is_signed_outside_and_its_successor_too(run: Run, tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    csr = run("init", "--intermediate")
    assert x509.load_pem_x509_csr(csr.encode()).public_key() == csr_key(run("init", "--intermediate"))
    assert run.phases() == ["prepared"]
    run("import", outside.sign(csr))
    assert run.phases() == ["signing"]
    first = run.issue()
    roots = (tmp_path / "root.pem").read_bytes()
    assert run("roots").encode() == roots
    assert len(split(first.chain)) == 2  # the leaf and the intermediate; the root is not sent
    assert verify(tmp_path, first.chain, roots, at=time.time()) == "OK"

    run("rotate", code=1)
    assert "rotate --intermediate" in run.errors
    run("import", outside.sign(run("rotate", "--intermediate")))
    assert run.phases() == ["signing", "trusted"]
    run("rotate", "--now")
    second = run.issue()
    assert split(second.chain)[1] != split(first.chain)[1]
    assert verify(tmp_path, second.chain, roots, at=time.time()) == "OK"

    run("revoke", f"{first.serial:x}")
    _, crl = run.bundle()
    assert crl.count(b"BEGIN X509 CRL") == 2
    assert "certificate revoked" in verify(tmp_path, first.chain, roots, crl=crl, at=time.time())
    assert verify(tmp_path, second.chain, roots, crl=crl, at=time.time()) == "OK"


def csr_key(csr: str) -> Any:
    return x509.load_pem_x509_csr(csr.encode()).public_key()


def test_nothing_is_signed_before_the_intermediate_is_there(run: Run, tmp_path: Path) -> None:
    run("init", "--intermediate")
    assert run.bundle() == (b"", b"")
    with pytest.raises(Exception, match="the authority has no certificate yet"):
        run.issue()
    run("rotate", code=1)
    assert "was never imported" in run.errors


def test_a_chain_of_another_key_is_refused(run: Run, tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    chain = outside.sign(run("init", "--intermediate"))
    run.store = ["--authority", str(tmp_path / "another")]
    run("init", "--intermediate")
    run("import", chain, code=1)
    assert "is of none of the keys that wait" in run.errors
    run("import", str(tmp_path / "root.pem"), code=1)
    assert "2 to 8 certificates" in run.errors
    run("import", str(tmp_path / "nothing"), code=1)
    assert "nothing: No such file" in run.errors


# -- flags


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("revoke",), "a serial, or --identity"),
        (("revoke", "xyz"), "not a hexadecimal number"),
        (("revoke", "ab", "--identity", CART.uri), "a serial, or --identity"),
        (("revoke", "--identity", "cart"), "is not spiffe://"),
        (("readmit",), "say what"),
        (("readmit", "cart"), "is not spiffe://"),
        (("import",), "say what"),
    ],
)
def test_flags_that_make_no_sense(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    run("init")
    run(*arguments, code=2)
    assert reason in run.errors


def test_without_an_authority_there_is_nothing_to_do(run: Run) -> None:
    for verb in ("status", "roots", "rotate"):
        run(verb, code=1)
        assert "meshproxy authority init" in run.errors
    run.store = []
    run("status", code=2)
    assert "--authority" in run.errors
    run.store = ["--authority", "etcd"]
    run("status", code=2)
    assert "--etcd" in run.errors


def test_a_trust_domain_is_checked(run: Run) -> None:
    run("init", "--trust-domain", "A/b", code=1)
    assert "--trust-domain: 'A/b' is none" in run.errors


def test_the_passphrase_is_not_for_everybody(run: Run) -> None:
    run.passphrase.chmod(0o604)
    run("init", code=1)
    assert "everybody can read it" in run.errors
    run.passphrase.chmod(0o600)
    run.passphrase.write_bytes(b"short")
    run("init", code=1)
    assert "less than 16 bytes" in run.errors
    assert "short" not in run.errors
    assert not (run.folder / "ca" / "state.json").exists()


def test_another_passphrase_opens_nothing(run: Run) -> None:
    run("init")
    run.passphrase.write_bytes(b"another passphrase")
    run("roots", code=1)
    assert "the passphrase is another one" in run.errors
    assert "another passphrase" not in run.errors


def test_it_works_on_etcd(run: Run, tmp_path: Path) -> None:
    (tmp_path / "etcd").mkdir()
    with Etcd(tmp_path / "etcd") as etcd:
        run.store = ["--authority", "etcd", "--etcd", etcd.endpoint]
        run("init")
        run("rotate")
        assert run.phases() == ["signing", "trusted"]
    run("status", code=1)
    assert f"etcd {etcd.endpoint}" in run.errors


def test_the_passphrase_may_stand_in_the_environment(tmp_path: Path) -> None:
    """As a process of its own, whose memory is private."""
    line = [sys.executable, "-m", "meshproxy", "authority", "init", "--authority", str(tmp_path / "ca")]
    told = {"MESHPROXY_AUTHORITY_PASSPHRASE": PASSPHRASE.decode()}
    for environment, code in (({}, 1), (told, 0)):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHPROXY_AUTHORITY")}
        done = subprocess.run(line, env=kept | environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert ("--authority-passphrase-file" in done.stderr) == (code == 1)
