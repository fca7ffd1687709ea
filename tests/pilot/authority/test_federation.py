"""The roots of other trust domains, from their files."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshproxy.pilot.authority.certificates import Validity, make_root, to_pem
from meshproxy.pilot.authority.federation import Federation, read_bundle
from meshproxy.pilot.authority.keys import make_key
from meshproxy.pilot.authority.settings import AuthorityError
from tests.pilot.authority.support import START


def root() -> x509.Certificate:
    return make_root(make_key("P-256"), "other.example", Validity(int(START), int(START) + 60))


def spiffe_bundle(*roots: x509.Certificate) -> str:
    keys = [
        {"use": "x509-svid", "x5c": [base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode()]}
        for each in roots
    ]
    return json.dumps({"spiffe_sequence": 1, "keys": [{"use": "jwt-svid", "kid": "x"}, *keys]})


def test_pem_and_spiffe_bundles_are_read(tmp_path: Path) -> None:
    one, other = root(), root()
    (tmp_path / "pem").write_bytes(b"# a comment\n" + to_pem([one, other]))
    (tmp_path / "json").write_text(spiffe_bundle(one, other))
    assert read_bundle(str(tmp_path / "pem")) == read_bundle(str(tmp_path / "json")) == to_pem([one, other])


@pytest.mark.parametrize(
    "text", ["", "nothing", "{", "{}", '{"keys": []}', '{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}', "[" * 9999]
)
def test_what_is_no_bundle_is_told_by_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle").write_text(text)
    with pytest.raises(AuthorityError, match=f"^{tmp_path}/bundle: "):
        read_bundle(str(tmp_path / "bundle"))


def test_files_are_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    one, other, path = root(), root(), tmp_path / "bundle"
    path.write_bytes(to_pem([one]))
    federation = Federation([("other.example", str(path))])
    assert not federation.known
    assert federation.read() == (("other.example", to_pem([one])),)
    path.write_bytes(b"half a file")
    assert federation.read() == (("other.example", to_pem([one])),)
    with pytest.raises(AuthorityError):
        federation.read(strict=True)
    path.write_bytes(to_pem([other]))
    assert federation.read() == (("other.example", to_pem([other])),)
