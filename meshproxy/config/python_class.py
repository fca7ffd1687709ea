"""Classes in Python that a configuration names: loaded from a file, a module or an entry point, and checked.

A file (or the file of a module) is run as a module of its own, under a name of its own, for each content that it has
had: so a changed file is loaded beside the one that runs, and each goes when nobody uses it any more. Filters of one
file share its module.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

from envoy.config.core.v3.base_pb2 import DataSource
from google.protobuf.struct_pb2 import Struct

from meshproxy.config.context import BuildContext
from meshproxy.config.dataclass_config import build_dataclass
from meshproxy.config.errors import ConfigErrors, child

ENTRY_POINTS: Final = "meshproxy.filters"  # the group under which packages name the classes that they bring

# Entry points of classes that are here already: of a program that runs the proxy in itself, such as a test.
PROVIDED: Final[dict[str, type[Any]]] = {}

T = TypeVar("T")


class PythonModule:
    """What a file held when it was read, as a module; `close` as often as it was acquired."""

    def __init__(self, module: ModuleType, digest: str) -> None:
        self.module = module
        self.digest = digest
        self.users = 0

    def close(self) -> None:
        self.users -= 1
        if self.users == 0:
            _modules.pop((self.module.__file__ or "", self.digest), None)
            sys.modules.pop(self.module.__name__, None)


_modules: dict[tuple[str, str], PythonModule] = {}


def loaded_modules() -> int:
    """How many versions of files are loaded."""
    return len(_modules)


class PythonClass(Generic[T]):
    """A class that a configuration names, and the dataclass of its own configuration."""

    def __init__(self, kind: type[T], config_type: type[Any] | None, version: str) -> None:
        self.kind = kind
        self.config_type = config_type
        self.version = version  # tells one content of the file from another

    def build_config(self, struct: Struct, path: str, errors: ConfigErrors) -> Any | None:
        """Its configuration; None for a class that has none, and after errors."""
        if self.config_type is not None:
            return build_dataclass(self.config_type, struct, path, errors)
        if struct.fields:
            errors.add(
                path,
                f"{self.kind.__name__} takes no configuration: annotate `config` in the class with a dataclass",
            )
        return None


def load_class(message: Any, path: str, context: BuildContext, base: type[T], name: str = "") -> PythonClass[T] | None:
    """The class that a `Python` message names, which must be derived from `base` (users know it as `name`).

    None after errors. The context holds the module, and knows the file as one that the resource is built of.
    """
    errors = context.errors
    class_name: str = getattr(message, "class")
    source = message.WhichOneof("source")
    if source is None:
        errors.add(path, "one of file, module, entry_point is required")
        return None
    where = child(path, source)
    if source == "entry_point" and message.entry_point in PROVIDED:
        return checked_class(PROVIDED[message.entry_point], "", where, errors, base, name or base.__name__)
    if source == "entry_point":
        found = _entry_point(message.entry_point, class_name, where, errors)
        if found is None:
            return None
        module_name, class_name = found
        loaded = _load_module(module_name, where, context)
    elif source == "module":
        loaded = _load_module(message.module, where, context)
    else:
        loaded = _load_file(message.file, "", where, context)
    if loaded is None:
        return None
    module, version = loaded
    kind = _find_class(module, class_name, child(path, "class"), errors, base, name or base.__name__)
    if kind is None:
        return None
    return checked_class(kind, version, child(path, "class"), errors, base, name or base.__name__)


def checked_class(
    kind: type[T], version: str, path: str, errors: ConfigErrors, base: type[T], name: str
) -> PythonClass[T] | None:
    """`kind` with the dataclass of its configuration, if its hooks are those of `base` and can be called as those."""
    before = len(errors)
    if not issubclass(kind, base):
        errors.add(path, f"{kind.__name__} is not derived from {name}")
        return None
    for attribute in dir(kind):
        if attribute.startswith("on_") and callable(getattr(kind, attribute)):
            _check_hook(kind, attribute, path, errors, base, name)
    config_type = _config_type(kind, path, errors, base)
    return PythonClass(kind, config_type, version) if len(errors) == before else None


# -- where the class is


def _entry_point(name: str, class_name: str, path: str, errors: ConfigErrors) -> tuple[str, str] | None:
    found = entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        known = ", ".join(sorted({one.name for one in entry_points(group=ENTRY_POINTS)})) or "none"
        errors.add(path, f"no installed package has the entry point {name!r} in {ENTRY_POINTS!r} (known: {known})")
        return None
    (entry, *_) = found
    return entry.module, class_name or entry.attr


def _load_module(name: str, path: str, context: BuildContext) -> tuple[ModuleType, str] | None:
    """A module that can be imported. Where it has a source file, that is what is loaded (and watched)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError) as error:
        context.errors.add(path, f"cannot find the module {name!r}: {error}")
        return None
    if spec is None:
        context.errors.add(path, f"there is no module {name!r} (PYTHONPATH says where to look)")
        return None
    if spec.origin is not None and spec.origin.endswith(".py"):
        return _load_file(spec.origin, spec.parent or "", path, context)
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # noqa: BLE001  whatever a user's module does when it is imported
        context.errors.add(path, describe_failure(error, spec.origin or name))
        return None


def _load_file(filename: str, package: str, path: str, context: BuildContext) -> tuple[ModuleType, str] | None:
    data = context.load(DataSource(filename=filename), path)
    if data is None:
        reason = context.errors.items.pop().reason
        context.errors.add(path, reason)  # where the user has written the name, not a DataSource's field
        return None
    digest = hashlib.sha256(data).hexdigest()
    held = _modules.get((filename, digest))
    if held is None:
        module = _run(filename, package, data, digest, path, context.errors)
        if module is None:
            return None
        held = _modules[(filename, digest)] = PythonModule(module, digest)
    held.users += 1
    context.keep(held)
    return held.module, digest


def _run(filename: str, package: str, source: bytes, digest: str, path: str, errors: ConfigErrors) -> ModuleType | None:
    name = f"meshproxy_python.{Path(filename).stem}_{digest[:12]}"
    module = ModuleType(name)
    module.__file__ = filename
    module.__package__ = package  # so that relative imports of a package's module work
    sys.modules[name] = module  # dataclasses and annotations look there
    try:
        exec(compile(source, filename, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a user's file does
        del sys.modules[name]
        errors.add(path, describe_failure(error, filename))
        return None
    return module


def describe_failure(error: BaseException, filename: str) -> str:
    """One line: what it was, and in which line of the file."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == filename else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == filename:
            line = frame.lineno
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{filename}:{line or 0}: {type(error).__name__}: {text}"


# -- the class


def _find_class(
    module: ModuleType, class_name: str, path: str, errors: ConfigErrors, base: type[T], name: str
) -> type[T] | None:
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    here = {key: value for key, value in own.items() if value.__module__ == module.__name__}
    if class_name:
        if class_name in own:
            return own[class_name]
        if hasattr(module, class_name):
            errors.add(path, f"{class_name} is not derived from {name}")
            return None
        near = difflib.get_close_matches(class_name, here, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(here) or 'none'}"
        errors.add(path, f"{module.__file__} has no class {class_name!r} ({hint})")
        return None
    if len(here) == 1:
        return next(iter(here.values()))
    errors.add(path, f"is required: of {name}, {module.__file__} has {', '.join(here) or 'none'}")
    return None


def _check_hook(kind: type[Any], attribute: str, path: str, errors: ConfigErrors, base: type[Any], name: str) -> None:
    """A hook that is misspelt would never be called, one that takes other arguments would fail for every stream."""
    hooks = [hook for hook in dir(base) if hook.startswith("on_")]
    if attribute not in hooks:
        near = difflib.get_close_matches(attribute, hooks, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(hooks)}"
        errors.add(path, f"{kind.__name__}.{attribute} is no hook of {name} ({hint})")
        return
    if inspect.getattr_static(kind, attribute) is inspect.getattr_static(base, attribute):
        return
    wanted = list(inspect.signature(getattr(base, attribute)).parameters)
    try:
        inspect.signature(getattr(kind, attribute)).bind(*wanted)
    except TypeError:
        what = ("be a classmethod and take (cls, " if wanted[:1] == ["context"] else "take (") + ", ".join(wanted) + ")"
        errors.add(path, f"{kind.__name__}.{attribute} must {what}")


def _config_type(kind: type[Any], path: str, errors: ConfigErrors, base: type[Any]) -> type[Any] | None:
    """The dataclass that annotates `config` in the class."""
    for owner in kind.__mro__:
        if owner is base:
            return None
        annotation = inspect.get_annotations(owner).get("config")
        if annotation is None:
            continue
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, vars(sys.modules[owner.__module__]), dict(vars(owner)))
            except Exception as error:  # noqa: BLE001  an annotation may be any expression
                errors.add(path, f"the annotation of {kind.__name__}.config: {error}")
                return None
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return annotation
        hint = f"{annotation.__name__} (is there no @dataclass?)" if isinstance(annotation, type) else repr(annotation)
        errors.add(path, f"{kind.__name__}.config must be annotated with a dataclass, not {hint}")
        return None
    return None
