"""`/config_dump`: what runs, whole or in part, written resource by resource."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from google.protobuf.message import Message

from meshproxy.config.regex import Regex, RegexError
from meshproxy.server.admin.backend import AdminBackend, ConfigResource, ConfigSection
from meshproxy.server.admin.exchange import JSON, PLAIN_TEXT, AdminError, AdminRequest, AdminResponse
from meshproxy.server.admin.field_mask import is_valid, trim, trim_field, trim_resource
from meshproxy.server.admin.json_stream import Member, members_of, write_array, write_message, write_object

_TYPE_PREFIX = "type.googleapis.com/"
_SECTION_DEPTH = 2


async def config_dump(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """All of it, or one repeated field (`resource`), with the fields that `mask` keeps."""
    params = request.params
    mask = [path for path in params.get("mask", "").split(",") if path]
    matches = _name_filter(params.get("name_regex", ""))
    sections = await backend.config_sections("include_eds" in params)
    if resource := params.get("resource", ""):
        configs = _one_resource(sections, resource, mask, matches)
    else:
        configs = _all_configs(sections, mask, matches)
    return AdminResponse(_write(configs), content_type=JSON)


def _name_filter(text: str) -> Callable[[str], bool]:
    """Whether a name matches as a whole; without a regex all do."""
    if not text:
        return lambda name: True
    try:
        regex = Regex(text)
    except (RegexError, UnicodeEncodeError) as error:
        reason = str(error).partition(": ")[2] if isinstance(error, RegexError) else "invalid UTF-8"
        message = f"INVALID_ARGUMENT: Error while parsing name_regex from {text}: {reason}"
        raise AdminError(400, message, PLAIN_TEXT) from error
    return lambda name: regex.full_match(name.encode())


def _write(configs: Iterable[Iterable[str]]) -> Iterator[str]:
    """An envoy.admin.v3.ConfigDump; `{}` when it is empty."""
    separator = '{\n "configs": [\n  '
    for pieces in configs:
        yield separator
        yield from pieces
        separator = ",\n  "
    yield "{}\n" if separator[0] == "{" else "\n ]\n}\n"


# -- everything


def _all_configs(
    sections: Sequence[ConfigSection], mask: list[str], matches: Callable[[str], bool]
) -> Iterable[Iterable[str]]:
    """Every section; with a mask those that have all of its fields."""
    if mask:
        sections = [section for section in sections if is_valid(mask, section.head.DESCRIPTOR)]
        if not sections:
            text = f"FieldMask {','.join(mask)} could not be successfully applied to any configs."
            raise AdminError(400, text, PLAIN_TEXT)
    return (write_object(_section_members(section, mask, matches), _SECTION_DEPTH) for section in sections)


def _section_members(section: ConfigSection, mask: list[str], matches: Callable[[str], bool]) -> Iterator[Member]:
    head = trim(mask, section.head) if mask else section.head
    descriptor: Any = head.DESCRIPTOR
    members: dict[int, Member] = {
        field.number: (field.name, pieces) for field, pieces in members_of(head, _SECTION_DEPTH + 1)
    }
    for name, large in section.large.items():
        message = trim_field(mask, name, large) if mask else large
        if message is not None:
            pieces = write_message(message, _SECTION_DEPTH + 1)
            members[descriptor.fields_by_name[name].number] = (name, pieces)
    wanted = [one for one in section.resources if (not mask or one.field in mask) and matches(one.name)]
    for name, group in groupby(wanted, lambda one: one.field):
        resources = list(group)
        items = (write_message(one.build(), _SECTION_DEPTH + 2) for one in resources)
        members[descriptor.fields_by_name[name].number] = (name, write_array(items, _SECTION_DEPTH + 1))
    yield "@type", (f'"{_TYPE_PREFIX}{descriptor.full_name}"',)
    for number in sorted(members):
        yield members[number]


# -- one repeated field


def _one_resource(
    sections: Sequence[ConfigSection], name: str, mask: list[str], matches: Callable[[str], bool]
) -> Iterable[Iterable[str]]:
    for section in sections:
        field = section.head.DESCRIPTOR.fields_by_name.get(name)
        if field is not None:
            _check_repeated(field)
            wanted = [one for one in section.resources if one.field == name and matches(one.name)]
            if mask and wanted and trim_resource(mask, wanted[0].build()) is None:
                _refuse_mask(mask)
            return _elements(wanted, mask)
    raise AdminError(404, f"{name} not found in config dump", PLAIN_TEXT)


def _check_repeated(field: Any) -> None:
    if not field.is_repeated:
        text = f"{field.name} is not a repeated field. Use ?mask={field.name} to get only this field"
        raise AdminError(400, text, PLAIN_TEXT)


def _refuse_mask(mask: list[str]) -> None:
    paths = "".join(f'paths: "{path}"\n' for path in mask)
    raise AdminError(400, f"FieldMask {paths} could not be successfully used.", PLAIN_TEXT)


def _elements(wanted: Sequence[ConfigResource], mask: list[str]) -> Iterator[Iterable[str]]:
    for one in wanted:
        message: Message | None = one.build()
        if mask:
            message = trim_resource(mask, message)
        if message is not None:
            yield write_message(message, _SECTION_DEPTH, type_url=_TYPE_PREFIX + str(message.DESCRIPTOR.full_name))
