"""What is refused keeps its last good version; the mesh follows what is fine."""

from __future__ import annotations

from meshproxy.pilot.documents.document import Document, Identity, split_documents
from meshproxy.pilot.documents.problems import Problem
from meshproxy.pilot.mesh.rulebook import RuleBook
from meshproxy.pilot.sources.source import RuleSet
from tests.pilot.documents.text import document_text

HOST = "a.example"


def entry(name: str, weight: str = "1", port: int = 80) -> str:
    endpoint = f"{{address: 10.0.0.1, weight: {weight}}}"
    spec = (
        f"hosts: [{name}.example]\nports: [{{number: {port}, name: http}}]\nresolution: STATIC\nendpoints: [{endpoint}]"
    )
    return document_text("ServiceEntry", spec, name, "shop")


def rules(*files: tuple[str, str], unreadable: tuple[Problem, ...] = ()) -> RuleSet:
    return RuleSet("r", tuple(raw for name, text in files for raw in split_documents(name, text)), unreadable)


def together(*texts: str) -> str:
    return "---\n".join(texts)


def names(book: RuleBook) -> list[str]:
    return sorted(identity.name for identity in book.mesh.documents)


def weight(book: RuleBook, name: str = "a") -> int:
    return book.mesh.endpoints((f"{name}.example", "shop"))[80][0].weight


def test_documents_come_change_and_go() -> None:
    book = RuleBook()
    book.update(rules(("f", together(entry("a"), entry("b")))))
    assert (names(book), weight(book), book.rejections, book.revision) == (["a", "b"], 1, (), "r")
    before = book.mesh
    book.update(rules(("f", together(entry("a", "2"), entry("c")))))
    assert (names(book), weight(book)) == (["a", "c"], 2)
    changes = book.mesh.changes(before)
    assert changes.services == {("b.example", "shop"), ("c.example", "shop")}
    assert changes.endpoints == {(f"{name}.example", "shop") for name in "abc"}


def test_the_same_documents_are_the_same_mesh_wherever_they_stand() -> None:
    book = RuleBook()
    first = book.update(rules(("f", together(entry("a"), entry("b")))))
    assert book.update(rules(("g", "# a comment\n" + together(entry("b"), entry("a"))))) is first


def test_a_document_that_is_refused_keeps_its_last_good_version() -> None:
    book = RuleBook()
    book.update(rules(("f", together(entry("a"), entry("b")))))
    book.update(rules(("f", together(entry("a", "many"), entry("b", "5")))))
    assert (weight(book), weight(book, "b")) == (1, 5)
    (rejection,) = book.rejections
    assert rejection.identity == Identity("ServiceEntry", "shop", "a")
    assert rejection.keeps
    assert [str(problem) for problem in rejection.problems] == [
        'f:8: spec.endpoints[0].weight: must be a whole number, not "many"'
    ]
    book.update(rules(("f", together(entry("a", "3"), entry("b", "5")))))
    assert (weight(book), book.rejections) == (3, ())


def test_a_document_that_was_never_fine_is_not_there() -> None:
    book = RuleBook()
    book.update(rules(("f", together(entry("a", "many"), entry("b")))))
    assert names(book) == ["b"]
    assert not book.rejections[0].keeps


def test_a_refused_document_that_is_deleted_goes() -> None:
    book = RuleBook()
    book.update(rules(("f", entry("a"))))
    book.update(rules(("f", entry("a", "many"))))
    assert names(book) == ["a"]
    book.update(rules())
    assert names(book) == []


def test_a_document_that_does_not_say_what_it_is_keeps_all_of_its_file() -> None:
    book = RuleBook()
    book.update(rules(("f", together(entry("a"), entry("b"))), ("g", entry("c"))))
    book.update(rules(("f", together(entry("a", "2"), "kind: [\n")), ("g", "# nothing\n")))
    assert (names(book), weight(book)) == (["a", "b"], 2)
    (rejection,) = book.rejections
    assert (rejection.source, rejection.identity, rejection.keeps) == ("f", None, True)


def test_a_kind_that_is_not_read_keeps_nothing() -> None:
    book = RuleBook()
    other = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n"
    book.update(rules(("f", together(entry("a"), entry("b"), other))))
    book.update(rules(("f", together(entry("a"), other))))
    assert names(book) == ["a"]
    assert [rejection.keeps for rejection in book.rejections] == [False]


def test_a_file_that_cannot_be_read_keeps_what_it_had() -> None:
    book = RuleBook()
    book.update(rules(("f", entry("a")), ("g", entry("b"))))
    problem = Problem("f", 1, "", "cannot be read")
    book.update(rules(unreadable=(problem,)))
    assert names(book) == ["a"]
    assert (book.rejections[0].problems, book.rejections[0].keeps) == ((problem,), True)


def test_of_two_documents_of_one_name_the_first_is_taken() -> None:
    book = RuleBook()
    book.update(rules(("f", entry("a")), ("g", entry("a", "2"))))
    assert weight(book) == 1
    assert [str(problem) for each in book.rejections for problem in each.problems] == [
        "g:1: metadata.name: ServiceEntry shop/a stands in f:1 already"
    ]
    book.update(rules(("g", entry("a", "2"))))
    assert (weight(book), book.rejections) == (2, ())


def test_the_first_of_one_name_is_taken_though_it_is_refused() -> None:
    book = RuleBook()
    book.update(rules(("f", entry("a", "many")), ("g", entry("a", "2"))))
    assert names(book) == []
    assert len(book.rejections) == 2


def test_nothing_takes_effect_before_the_last_step() -> None:
    book = RuleBook()
    steps = book.steps(rules(("f", together(entry("a"), entry("b")))))
    next(steps)
    next(steps)
    assert names(book) == []
    assert list(steps) == []
    assert names(book) == ["a", "b"]


def test_a_document_that_cannot_be_checked_is_refused_alone() -> None:
    def check(document: Document) -> list[str]:
        if document.identity.name == "a":
            raise OverflowError("too much")
        return []

    book = RuleBook(check=check)
    book.update(rules(("f", together(entry("a"), entry("b")))))
    assert names(book) == ["b"]
    (rejection,) = book.rejections
    assert [problem.reason for problem in rejection.problems] == ["cannot be made into resources: too much"]


def test_an_alias_that_stands_for_more_and_more_is_counted_each_time() -> None:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8]"]
    lines += [f"a{each}: &a{each} [{', '.join([f'*a{each - 1}'] * 8)}]" for each in range(1, 9)]
    spec = "module: m\nconfig:\n" + "".join(f"  {line}\n" for line in lines)
    book = RuleBook()
    book.update(rules(("f", document_text("PythonFilter", spec))))
    (rejection,) = book.rejections
    assert "too large" in rejection.problems[0].reason


def policy(action: str, name: str = "p", selector: str = "selector: {matchLabels: {app: web}}", more: str = "") -> str:
    return document_text("AuthorizationPolicy", f"{selector}\naction: {action}\nrules: [{{}}]", name, "shop", more)


def in_force(book: RuleBook) -> dict[str, tuple[str, object]]:
    """Action and selection of every policy."""
    return {
        one.name: (one.spec.action, one.spec.selections) for one in book.mesh.of_kind("AuthorizationPolicy", "shop")
    }


WEB = ((("app", "web"),),)


def test_a_policy_that_was_never_good_denies_everything_to_whom_it_selects() -> None:
    book = RuleBook()
    book.update(rules(("f", together(entry("a"), policy("CUSTOM")))))
    assert in_force(book) == {"p": ("DENY", WEB)}
    (rejection,) = book.rejections
    assert (rejection.denies, rejection.keeps) == (True, False)
    book.update(rules(("f", policy("ALOW"))))
    assert [(one.denies, one.keeps) for one in book.rejections] == [(True, False)]
    book.update(rules(("f", policy("ALLOW"))))
    assert (in_force(book), book.rejections) == ({"p": ("ALLOW", WEB)}, ())


def test_a_policy_that_was_good_stays_as_it_was() -> None:
    book = RuleBook()
    book.update(rules(("f", policy("ALLOW"))))
    book.update(rules(("f", policy("ALOW"))))
    assert in_force(book) == {"p": ("ALLOW", WEB)}
    assert [(one.denies, one.keeps) for one in book.rejections] == [(False, True)]


def test_a_selector_that_cannot_be_read_is_everybody() -> None:
    for selector in ("selector: {matchLabels: {app: 1}}", "selector: {labels: {app: web}}", "selector: web"):
        book = RuleBook()
        book.update(rules(("f", policy("ALLOW", selector=selector))))
        assert in_force(book) == {"p": ("DENY", ((),))}


def test_what_would_refuse_nobody_is_not_made_to() -> None:
    book = RuleBook()
    dry_run = ', annotations: {istio.io/dry-run: "true"}'
    audit = document_text("AuthorizationPolicy", "action: AUDIT\nrules: [{from: []}]", "audit", "shop")
    book.update(rules(("f", together(audit, policy("ALOW", more=dry_run), entry("a", "many")))))
    assert in_force(book) == {}
    assert [one.denies for one in book.rejections] == [False, False, False]


def test_a_denial_goes_with_its_document_but_not_with_a_file_that_cannot_be_read() -> None:
    book = RuleBook()
    broken = Problem("f", 1, "", "cannot be read")
    book.update(rules(("f", policy("ALOW"))))
    for _ in range(2):
        book.update(rules(("g", entry("a")), unreadable=(broken,)))
        assert in_force(book) == {"p": ("DENY", WEB)}
    book.update(rules(("f", policy("ALOW"))))
    assert [(one.denies, one.keeps) for one in book.rejections] == [(True, False)]
    book.update(rules(("f", entry("a"))))
    assert in_force(book) == {}


def test_a_peer_authentication_that_was_never_good_is_strict() -> None:
    text = document_text("PeerAuthentication", "selector: {matchLabels: {app: web}}\nmtls: {mode: strict}", "p", "shop")
    book = RuleBook()
    book.update(rules(("f", text)))
    assert [one.denies for one in book.rejections] == [True]
    takes = [book.mesh.mutual_tls("shop", {"app": app}).mode for app in ("web", "other")]
    assert takes == ["STRICT", "PERMISSIVE"]
    book.update(rules(("f", text.replace("strict", "DISABLE"))))
    book.update(rules(("f", text)))
    assert book.mesh.mutual_tls("shop", {"app": "web"}).mode == "DISABLE"


def test_what_no_proxy_would_take_denies_as_well() -> None:
    book = RuleBook(check=lambda _: ["no proxy takes this"])
    book.update(rules(("f", policy("ALLOW"))))
    assert in_force(book) == {"p": ("DENY", WEB)}
