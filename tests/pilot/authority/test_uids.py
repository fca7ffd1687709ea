"""The table of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshproxy.errors import ConfigError
from meshproxy.pilot.authority.uids import UidTable
from tests.pilot.authority.fakes import TRUST_DOMAIN


def test_it_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "uids.yaml"
    path.write_text("1000: shop/web\n0: kube-system/root\n")
    table = UidTable(str(path), TRUST_DOMAIN)

    def name(uid: int) -> str:
        found = table.identity(uid)
        return "" if found is None else found.uri

    assert name(1000) == "spiffe://mesh.test/ns/shop/sa/web"
    assert name(0) == "spiffe://mesh.test/ns/kube-system/sa/root"
    assert name(1001) == ""
    path.write_text("1001: shop/db\n")
    assert (name(1000), name(1001)) == ("", "spiffe://mesh.test/ns/shop/sa/db")
    path.write_text("1001: [")
    assert name(1001) == "spiffe://mesh.test/ns/shop/sa/db"
    path.unlink()
    assert name(1001) == "spiffe://mesh.test/ns/shop/sa/db"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a mapping is expected"),
        ("[1]", "a mapping is expected"),
        ("{", "this is no YAML"),
        ("a: shop/web", "'a' is no uid"),
        ("true: shop/web", "True is no uid"),
        ("-1: shop/web", "-1 is no uid"),
        ("4294967295: shop/web", "is no uid"),  # (uid_t)-1, which is nobody's
        ("1: shop", "'shop' is not `namespace/service account`"),
        ("1: shop/web/x", "is not `namespace/service account`"),
        ("1: ../web", "is not `namespace/service account`"),
        ("1: 7", "7 is not `namespace/service account`"),
        ("1: {a: b}", "is not `namespace/service account`"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "uids.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        UidTable(str(path), TRUST_DOMAIN)
    assert why in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        UidTable(str(tmp_path / "none"), TRUST_DOMAIN)
