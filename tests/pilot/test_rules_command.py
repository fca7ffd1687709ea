"""`meshproxy rules`: what it prints, what it writes, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from meshproxy.cli import main
from tests.pilot.documents.text import document_text
from tests.pilot.sources.etcd import Etcd

SERVICE = document_text(
    "ServiceEntry",
    "hosts: [a.example]\nports: [{number: 80, name: http}]\nresolution: STATIC\nendpoints: [{address: 10.0.0.1}]",
    "a",
    "shop",
)
ROUTE = document_text(
    "VirtualService", "hosts: [a.example]\nhttp: [{route: [{destination: {host: a.example}}]}]", "v", "shop"
)


class Run:
    """Runs the command on a store and files of its own."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.store = directory / "store"
        self.store.mkdir()
        self.given = directory / "given.yaml"
        self._capture = capture

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output; `errors` has the rest."""
        self._capture.readouterr()
        assert main(["rules", *arguments]) == code
        out, self.errors = self._capture.readouterr()
        return out

    def apply(self, *texts: str) -> str:
        self.given.write_text("---\n".join(texts))
        return self("apply", "-f", str(self.given), "--rules", str(self.store))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


def test_documents_that_are_fine_are_counted(run: Run) -> None:
    run.given.write_text(SERVICE + "---\n" + ROUTE)
    assert run("validate", "-f", str(run.given)) == "2 documents: fine\n"
    assert run.errors == ""


def test_every_error_is_told_with_its_place(run: Run) -> None:
    run.given.write_text(SERVICE.replace("number: 80", "number: 0") + "---\n" + ROUTE.replace("hosts:", "hosst:"))
    assert run("validate", "-f", str(run.given), code=1) == ""
    assert run.errors == (
        f"{run.given}:6: spec.ports[0].number: must be between 1 and 65535\n"
        f"{run.given}:13: spec.hosts: is required\n"
        f'{run.given}:14: spec.hosst: there is no such field (did you mean "hosts"?)\n'
    )


def test_documents_are_checked_together_with_those_that_are_there(run: Run) -> None:
    run.given.write_text(ROUTE)
    run("validate", "-f", str(run.given))
    assert run.errors == (
        f"{run.given}:6: spec.http[0].route[0].destination.host: there is no service a.example (warning)\n"
    )
    (run.store / "a.yaml").write_text(SERVICE)
    assert run("validate", "-f", str(run.given), "--rules", str(run.store)) == "2 documents: fine\n"
    assert run.errors == ""


def test_the_store_alone_is_checked(run: Run) -> None:
    (run.store / "a.yaml").write_text(SERVICE + "---\n" + SERVICE)
    run("validate", "--rules", str(run.store), code=1)
    assert run.errors == (
        f"{run.store}/a.yaml:10: metadata.name: ServiceEntry shop/a stands in {run.store}/a.yaml:1 already\n"
    )


def test_apply_writes_what_is_new_or_changed_and_shows_it(run: Run) -> None:
    out = run.apply(SERVICE, ROUTE)
    assert "ServiceEntry shop/a: created\n" in out
    assert "+  - a.example\n" in out
    assert (run.store / "serviceentry.shop.a.yaml").read_text() == SERVICE
    out = run.apply(SERVICE.replace("10.0.0.1", "10.0.0.2"), ROUTE)
    assert "ServiceEntry shop/a: changed\n" in out
    assert "-  - address: 10.0.0.1\n+  - address: 10.0.0.2\n" in out
    assert "VirtualService shop/v: unchanged\n" in out
    assert "10.0.0.2" in (run.store / "serviceentry.shop.a.yaml").read_text()


def test_apply_writes_nothing_when_one_document_is_wrong(run: Run) -> None:
    run.given.write_text(SERVICE + "---\n" + ROUTE.replace("hosts:", "hosst:"))
    run("apply", "-f", str(run.given), "--rules", str(run.store), code=1)
    assert list(run.store.iterdir()) == []


def test_dry_runs_write_nothing(run: Run) -> None:
    run.given.write_text(SERVICE)
    out = run("apply", "-f", str(run.given), "--rules", str(run.store), "--dry-run")
    assert "ServiceEntry shop/a: created\n" in out
    assert out.endswith("nothing was written (--dry-run)\n")
    assert list(run.store.iterdir()) == []
    run.apply(SERVICE)
    run("delete", "se", "a", "-n", "shop", "--rules", str(run.store), "--dry-run")
    assert len(list(run.store.iterdir())) == 1


def test_diff_says_by_its_exit_code_whether_something_differs(run: Run) -> None:
    run.apply(SERVICE)
    assert run("diff", "-f", str(run.given), "--rules", str(run.store)) == ""
    run.given.write_text(SERVICE.replace("number: 80", "number: 81") + "# a comment is no difference\n")
    out = run("diff", "-f", str(run.given), "--rules", str(run.store), code=1)
    assert "-  - number: 80\n+  - number: 81\n" in out


def test_get_lists_and_prints(run: Run) -> None:
    run.apply(SERVICE, ROUTE)
    store = ("--rules", str(run.store))
    assert run("get", *store) == (
        "NAMESPACE  KIND            NAME\nshop       ServiceEntry    a\nshop       VirtualService  v\n"
    )
    for kind in ("vs", "VirtualService", "virtualservices"):
        assert run("get", kind, *store).splitlines()[1:] == ["shop       VirtualService  v"]
    assert run("get", "-n", "other", *store).splitlines()[1:] == []
    assert [each["metadata"]["name"] for each in json.loads(run("get", "-o", "json", *store))] == ["a", "v"]
    (printed,) = yaml.safe_load_all(run("get", "se", "a", "-o", "yaml", *store))
    assert printed == yaml.safe_load(SERVICE)


def test_what_is_not_there_is_told(run: Run) -> None:
    run("get", "vs", "v", "--rules", str(run.store), code=1)
    assert run.errors == "meshproxy rules: there is no vs v\n"
    assert run("delete", "vs", "v", "--rules", str(run.store), code=1) == "VirtualService default/v: is not there\n"


def test_delete_by_name_and_by_file(run: Run) -> None:
    run.apply(SERVICE, ROUTE)
    assert run("delete", "vs", "v", "-n", "shop", "--rules", str(run.store)) == "VirtualService shop/v: deleted\n"
    out = run("delete", "-f", str(run.given), "--rules", str(run.store), code=1)
    assert out == "ServiceEntry shop/a: deleted\nVirtualService shop/v: is not there\n"
    assert list(run.store.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("get",), "say where the documents are"),
        (("get", "--rules", "a", "--etcd", "b:1"), "say where the documents are"),
        (("get", "--rules", "/nowhere"), "there is no such directory"),
        (("get", "--etcd", "nowhere"), "needs a port"),
        (("get", "--etcd", "a:1", "--etcd-cert", "c"), "belong together"),
        (("get", "pods", "--rules", "."), "there is no kind pods"),
        (("validate",), "say what to check"),
        (("apply", "--rules", "."), "say which documents"),
        (("delete", "vs", "--rules", "."), "say what to delete"),
    ],
)
def test_wrong_flags_are_exit_code_2(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    run(*arguments, code=2)
    assert reason in run.errors


def test_etcd_is_written_and_read_too(run: Run, tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        store = ("--etcd", etcd.endpoint, "--etcd-prefix", "/p")
        run.given.write_text(SERVICE + "---\n" + ROUTE)
        assert "VirtualService shop/v: created\n" in run("apply", "-f", str(run.given), *store)
        assert run("get", "vs", *store).splitlines()[1:] == ["shop       VirtualService  v"]
        assert run("validate", *store) == "2 documents: fine\n"
        run.given.write_text(SERVICE.replace("10.0.0.1", "10.0.0.2"))
        assert "ServiceEntry shop/a: changed\n" in run("apply", "-f", str(run.given), *store)
        assert run("delete", "vs", "v", "-n", "shop", *store) == "VirtualService shop/v: deleted\n"
        assert run("get", *store).splitlines()[1:] == ["shop       ServiceEntry  a"]
