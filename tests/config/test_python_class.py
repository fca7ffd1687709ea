"""Where classes in Python come from, and what is said when they do not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from meshproxy.api.http_filter_pb2 import Python
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.python_class import PythonClass, load_class, loaded_modules
from meshproxy.config.runtime import Runtime
from meshproxy.observe.stats import StatsRegistry


class Base:
    """What the classes are derived from."""

    def on_thing(self, thing: str) -> None: ...


BASE = f"from {__name__} import Base\n"
ONE = BASE + "class One(Base): pass\n"


def new_context() -> BuildContext:
    return BuildContext(ConfigErrors(), Runtime(), StatsRegistry())


def message(**fields: str) -> Python:
    made = Python()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def load(context: BuildContext, **fields: str) -> PythonClass[Base] | None:
    return load_class(message(**fields), "filter", context, Base)


def refused(**fields: str) -> str:
    context = new_context()
    assert load(context, **fields) is None
    context.close()
    assert loaded_modules() == 0
    return str(context.errors)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    monkeypatch.syspath_prepend(str(tmp_path))


def _this_module() -> Any:
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_is_loaded_once_for_all_who_name_it_and_goes_with_the_last(tmp_path: Path) -> None:
    file = write(tmp_path / "one.py", ONE)
    first, second = new_context(), new_context()
    one, other = load(first, file=file), load(second, file=file, **{"class": "One"})
    assert one is not None
    assert other is not None
    assert one.kind is other.kind
    assert first.files.keys() == {file}
    name = one.kind.__module__
    first.close()
    assert (loaded_modules(), name in sys.modules) == (1, True)
    second.close()
    assert (loaded_modules(), name in sys.modules) == (0, False)


def test_another_content_is_another_module_beside_it(tmp_path: Path) -> None:
    context = new_context()
    old = load(context, file=write(tmp_path / "one.py", ONE))
    changed = new_context()
    new = load(changed, file=write(tmp_path / "one.py", ONE + "# changed\n"))
    assert old is not None
    assert new is not None
    assert (old.kind is new.kind, old.version == new.version, loaded_modules()) == (False, False, 2)
    context.close()
    changed.close()


def test_a_module_of_a_package_with_its_relative_imports(tmp_path: Path) -> None:
    write(tmp_path / "some_package" / "__init__.py", "")
    write(tmp_path / "some_package" / "words.py", "WORD = 'said'\n")
    file = write(tmp_path / "some_package" / "one.py", "from .words import WORD\n" + ONE + "One.word = WORD\n")
    context = new_context()
    found = load(context, module="some_package.one")
    assert found is not None
    assert vars(found.kind)["word"] == "said"
    assert context.files.keys() == {file}  # it is watched
    context.close()


def test_an_entry_point_of_an_installed_package(tmp_path: Path) -> None:
    write(tmp_path / "brings_filters.py", ONE + "class Two(One): pass\n")
    info = tmp_path / "brings_filters-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: brings-filters\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[meshproxy.filters]\ntwo = brings_filters:Two\n")
    context = new_context()
    found = load(context, entry_point="two")
    assert found is not None, str(context.errors)
    assert found.kind.__name__ == "Two"
    context.close()
    assert "has the entry point 'three' in 'meshproxy.filters' (known: " in refused(entry_point="three")


@pytest.mark.parametrize(
    ("text", "fields", "error"),
    [
        ("", {}, "filter.class: is required: of Base, {file} has none"),
        (ONE + "class Two(Base): pass", {}, "filter.class: is required: of Base, {file} has One, Two"),
        (ONE, {"class": "Onne"}, "filter.class: {file} has no class 'Onne' (did you mean 'One'?)"),
        (ONE, {"class": "Other"}, "filter.class: {file} has no class 'Other' (it has One)"),
        ("class Other: pass", {"class": "Other"}, "filter.class: Other is not derived from Base"),
        ("x = 1\nimport nothing.there", {}, "filter.file: {file}:2: ModuleNotFoundError: No module named 'nothing'"),
        ("raise SystemExit(3)", {}, "filter.file: {file}:1: SystemExit: 3"),
        (
            BASE + "class One(Base):\n    config: int",
            {},
            "filter.class: One.config must be annotated with a dataclass, not int (is there no @dataclass?)",
        ),
        (
            BASE + "class One(Base):\n    config: 'Missing'",
            {},
            "filter.class: the annotation of One.config: name 'Missing' is not defined",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, fields: dict[str, str], error: str) -> None:
    file = write(tmp_path / "one.py", text)
    assert refused(file=file, **fields) == error.format(file=file)


def test_what_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.py")
    assert refused(file=missing) == f"filter.file: cannot read {missing!r}: No such file or directory"
    assert refused(module="no_such_module") == (
        "filter.module: there is no module 'no_such_module' (PYTHONPATH says where to look)"
    )
    assert "filter.module: cannot find the module 'no_such.module'" in refused(module="no_such.module")
    assert refused() == "filter: one of file, module, entry_point is required"
