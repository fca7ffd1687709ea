"""Lines of the audit: one each, whole, and nobody can forge another."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.settings import AuthorityError
from tests.pilot.authority.support import START


def issue(audit: Audit, address: str = "10.0.0.1:1") -> None:
    audit.issued("spiffe://a/ns/b/sa/c", "jwt", address, serial=255, issuer="i", not_after=START, lifetime_s=60.0)


def test_a_line_says_who_what_and_how(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "log"))
    issue(audit)
    audit.refused("no", "spiffe://a/ns/b/sa/c", "uid", "unix:", "csr")
    audit.changed("revoked", serial="ff")
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all(line.pop("time") for line in lines)
    who = {"identity": "spiffe://a/ns/b/sa/c"}
    more = {"serial": "ff", "issuer": "i", "not_after": "2027-01-15T08:00:00.000+00:00", "lifetime_s": 60.0}
    assert lines == [
        {"event": "issued", **who, "proof": "jwt", "address": "10.0.0.1:1", **more},
        {"event": "refused", **who, "proof": "uid", "address": "unix:", "code": "csr", "reason": "no"},
        {"event": "revoked", "serial": "ff"},
    ]


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "log"))
    issue(audit)
    audit.close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_log_that_was_rotated_away_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    audit = Audit(str(log))
    issue(audit)
    log.rename(tmp_path / "log.1")
    issue(audit)
    issue(audit)
    audit.close()
    assert len((tmp_path / "log.1").read_text().splitlines()) == 1
    assert len(log.read_text().splitlines()) == 2


def test_a_line_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="no/log: No such file or directory: no audit line, no certificate"):
        issue(Audit(str(tmp_path / "no" / "log")))
    with pytest.raises(AuthorityError, match="/dev/full: "):
        issue(Audit("/dev/full"))


@given(st.text(max_size=4000))
def test_nothing_that_a_caller_sends_makes_a_second_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    log = tmp_path_factory.getbasetemp() / "one-line"
    log.unlink(missing_ok=True)
    audit = Audit(str(log))
    audit.refused(text, text, text, text, text)
    audit.close()
    data = log.read_bytes()
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert data.isascii()
    assert json.loads(data)["reason"] == text[:2048]
    assert all(byte >= 0x20 for byte in data[:-1])
