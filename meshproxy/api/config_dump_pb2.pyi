from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NotDoneConfigDump(_message.Message):
    __slots__ = ("resources",)
    class Field(_message.Message):
        __slots__ = ("path", "note")
        PATH_FIELD_NUMBER: _ClassVar[int]
        NOTE_FIELD_NUMBER: _ClassVar[int]
        path: str
        note: str
        def __init__(self, path: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...
    class Resource(_message.Message):
        __slots__ = ("type_url", "name", "version_info", "fields")
        TYPE_URL_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
        FIELDS_FIELD_NUMBER: _ClassVar[int]
        type_url: str
        name: str
        version_info: str
        fields: _containers.RepeatedCompositeFieldContainer[NotDoneConfigDump.Field]
        def __init__(self, type_url: _Optional[str] = ..., name: _Optional[str] = ..., version_info: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[NotDoneConfigDump.Field, _Mapping]]] = ...) -> None: ...
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[NotDoneConfigDump.Resource]
    def __init__(self, resources: _Optional[_Iterable[_Union[NotDoneConfigDump.Resource, _Mapping]]] = ...) -> None: ...
