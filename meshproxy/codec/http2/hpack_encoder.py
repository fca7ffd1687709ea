"""Header blocks written (RFC 7541)."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.http2.field_rules import without_controls
from meshproxy.codec.http2.hpack_tables import (
    DEFAULT_TABLE_BYTES,
    ENTRY_OVERHEAD_BYTES,
    HUFFMAN,
    INDEXED,
    INDEXED_MAX,
    INSERTED,
    INSERTED_MAX,
    LENGTH_MAX,
    NEVER_INDEXED,
    PLAIN,
    PLAIN_MAX,
    RESIZE,
    RESIZE_MAX,
    STATIC_SIZE,
    STATIC_TABLE,
)
from meshproxy.codec.http2.huffman import huffman_encode

# Fields that no peer may keep (RFC 7541 section 7.1.3): credentials, and cookies so short that they can be guessed.
_CREDENTIALS: Final = frozenset({b"authorization", b"proxy-authorization"})
_COOKIE_BYTES: Final = 20

_ALWAYS_NEW: Final = frozenset({b"x-request-id", b"traceparent"})  # their values do not come again

_SEEN_LIMIT: Final = 64  # fields that a connection remembers to have sent once
_SENT_BYTES: Final = 1024  # blocks up to this size are remembered
_LEARNT_LIMIT: Final = 2048  # strings whose encoding is remembered, in all,
_LEARNT_BYTES: Final = 64  # … each of at most this length: memory stays bounded, whatever is sent

_OCTETS: Final[list[bytes]] = [bytes([octet]) for octet in range(256)]


def encode_integer(pattern: int, largest: int, value: int) -> bytes:
    """`value` in the integer representation of RFC 7541 section 5.1, behind the bits of `pattern` in an octet that
    holds `largest` at most."""
    if value < largest:
        return _OCTETS[pattern | value]
    octets = [pattern | largest]
    value -= largest
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def encode_string(text: bytes) -> bytes:
    """`text` as a string literal (RFC 7541 section 5.2)."""
    return encode_integer(0, LENGTH_MAX, len(text)) + text


def encode_compact_string(text: bytes) -> bytes:
    """`text` as a string literal, in Huffman code if that is shorter."""
    encoded = huffman_encode(text)
    if len(encoded) < len(text):
        return encode_integer(HUFFMAN, LENGTH_MAX, len(encoded)) + encoded
    return encode_string(text)


def _first_indexes() -> dict[bytes, int]:
    """Name -> its first index in the static table."""
    indexes: dict[bytes, int] = {}
    for i in range(STATIC_SIZE):
        indexes.setdefault(STATIC_TABLE[i][0], i + 1)
    return indexes


_STATIC: Final[dict[Any, int]] = {field: i + 1 for i, field in enumerate(STATIC_TABLE)}
_STATIC_NAMES: Final[dict[bytes, int]] = _first_indexes()
_INDEXED: Final[list[bytes]] = [encode_integer(INDEXED, INDEXED_MAX, index) for index in range(256)]
_LITERALS: Final[dict[int, list[bytes]]] = {  # the beginning of a literal, by its pattern and the index of its name
    pattern: [encode_integer(pattern, largest, index) for index in range(256)]
    for pattern, largest in ((INSERTED, INSERTED_MAX), (PLAIN, PLAIN_MAX), (NEVER_INDEXED, PLAIN_MAX))
}
_STRINGS: dict[bytes, bytes] = {}  # names, and values that were inserted -> the string literal


class _Sent:
    """The last block of one number of fields: most of them come again, at the same place."""

    def __init__(self) -> None:
        self.fields: list[Any] = []
        self.parts: list[bytes] = []  # the representation of each
        self.block: bytes = b""

    def forget(self) -> None:
        """The representations do not hold any more; the list stays, as a block may be under way."""
        fields = self.fields
        for i in range(len(fields)):
            fields[i] = None


class HpackEncoder:
    """The sending end of a connection's header compression.

    The first value of a name is inserted into the dynamic table at once, which serves the name too. A name that turns
    out to have several values gets another one in only when that comes for the second time within a while: paths,
    lengths and the like profit when they repeat, and request ids never push out what does. Nothing larger than half of
    the table enters it.

    What enters the table is Huffman-coded, once. What does not comes in no other message, and goes as it is: of a
    request id the code would save a quarter, nine octets, and cost either end more than the rest of its block together.
    """

    def __init__(self, max_table_bytes: int) -> None:
        """`max_table_bytes` is the most that we use of the table that the peer offers."""
        self._max_table_bytes: Final = max_table_bytes
        self._table_bytes: int = DEFAULT_TABLE_BYTES
        self._told_bytes: int = DEFAULT_TABLE_BYTES  # the size that the peer's decoder knows
        self._smallest_bytes: int = DEFAULT_TABLE_BYTES  # … was to have since then
        self._resized: bool = False
        self._used: int = 0
        self._inserted: int = 0  # entries, ever: the number of the next one
        self._table: list[Any] = []  # fields; the newest is the last
        self._numbers: dict[Any, int] = {}  # field -> its number, or what is negative: its static index
        self._names: dict[bytes, int] = {}  # name -> the number of the newest entry of that name
        self._seen: set[int] = set()  # hashes of fields that were sent once, without being inserted
        self._moved: bool = False  # indexes are not what they were before the block
        self._sent: list[_Sent] = [_Sent(), _Sent(), _Sent(), _Sent()]  # by the number of fields, modulo 4
        self._resize(min(max_table_bytes, DEFAULT_TABLE_BYTES))

    def set_peer_table_size(self, size: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE; the next block tells its decoder (RFC 7541 section 4.2)."""
        self._resize(min(size, self._max_table_bytes))

    def encode(self, fields: list[Any], sensitive: frozenset[bytes] | None) -> bytes:
        """A header block with all `fields`, (name, value), in their order. Those with a name in `sensitive` go
        never-indexed (RFC 7541 section 6.2.3)."""
        if sensitive is not None and not sensitive <= _CREDENTIALS:  # credentials are so anyhow
            return self._encode_sensitive(fields, sensitive)
        size = len(fields)
        sent = self._sent[size & 3]
        if len(sent.fields) != size:
            sent.fields = [None] * size
            sent.parts = [b""] * size
            sent.block = b""
        before, parts = sent.fields, sent.parts
        same = True
        for at in range(size):
            field: Any = fields[at]
            if field is not before[at]:
                parts[at] = self._represent(field)
                before[at] = field
                same = False
        if same and not self._resized:
            return sent.block
        block = b"".join(parts)
        if self._moved:
            self._forget()
            self._moved = False
        sent.block = block
        if len(block) > _SENT_BYTES:
            self._sent[size & 3] = _Sent()
        return self._size_updates() + block if self._resized else block

    def _encode_sensitive(self, fields: list[Any], sensitive: frozenset[bytes]) -> bytes:
        parts = [self._size_updates()]
        for i in range(len(fields)):
            field: Any = fields[i]
            name: bytes = field[0]
            if name in sensitive:
                value = without_controls(field[1])
                parts.append(self._literal(NEVER_INDEXED, PLAIN_MAX, name) + encode_string(value))
            else:
                parts.append(self._represent(field))
        if self._moved:
            self._forget()
            self._moved = False
        return b"".join(parts)

    def _represent(self, field: Any) -> bytes:
        name: bytes = field[0]
        if name in _ALWAYS_NEW and name in self._names:
            return self._literal(PLAIN, PLAIN_MAX, name) + encode_string(field[1])
        number = self._numbers.get(field)
        if number is None:
            return self._new_field(field, field[0], field[1])
        index = -number if number < 0 else STATIC_SIZE + self._inserted - number
        return _INDEXED[index] if index < len(_INDEXED) else encode_integer(INDEXED, INDEXED_MAX, index)

    def _new_field(self, field: Any, name: bytes, value: bytes) -> bytes:
        """The representation of a field that is not in the dynamic table. A control in its value, or upper case in its
        name (a filter's mistake), goes no further: nobody behind can take it for the end of a line."""
        index = _STATIC.get(field)
        if index is not None:
            self._numbers[field] = -index
            return _INDEXED[index]
        value = without_controls(value)
        if name in _CREDENTIALS or (len(value) < _COOKIE_BYTES and name == b"cookie"):
            return self._literal(NEVER_INDEXED, PLAIN_MAX, name) + encode_string(value)
        size = len(name) + len(value) + ENTRY_OVERHEAD_BYTES
        if not self._is_worth(field, name, size):
            return self._literal(PLAIN, PLAIN_MAX, name) + encode_string(value)
        literal = self._literal(INSERTED, INSERTED_MAX, name) + _learnt_string(value)
        self._insert(field, name, size)
        return literal

    def _literal(self, pattern: int, largest: int, name: bytes) -> bytes:
        """The beginning of a literal representation (RFC 7541 section 6.2): all but its value."""
        index = _STATIC_NAMES.get(name)
        if index is None:
            number = self._names.get(name)
            if number is None:
                return _OCTETS[pattern] + _learnt_string(name.lower())
            index = STATIC_SIZE + self._inserted - number
        literals = _LITERALS[pattern]
        return literals[index] if index < len(literals) else encode_integer(pattern, largest, index)

    def _is_worth(self, field: Any, name: bytes, size: int) -> bool:
        """Whether a field is to be inserted; the class says by which rule."""
        if size * 2 > self._table_bytes:
            return False
        if name not in self._names:
            return True
        seen = self._seen
        hashed = hash(field)
        if hashed in seen:
            seen.discard(hashed)
            return True
        if len(seen) >= _SEEN_LIMIT:
            seen.clear()
        seen.add(hashed)
        return False

    # -- the dynamic table (RFC 7541 sections 2.3.2 and 4)

    def _insert(self, field: Any, name: bytes, size: int) -> None:
        self._used += size
        if self._used > self._table_bytes:
            self._evict()
        self._numbers[field] = self._names[name] = self._inserted
        self._table.append(field)
        self._inserted += 1
        self._moved = True
        self._forget()

    def _evict(self) -> None:
        """Drop the oldest entries until what is `_used` fits."""
        table = self._table
        count = 0
        number = self._inserted - len(table)
        while self._used > self._table_bytes:
            field: Any = table[count]
            name: bytes = field[0]
            value: bytes = field[1]
            self._used -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES
            del self._numbers[field]
            if self._names[name] == number + count:
                del self._names[name]
            count += 1
        del table[:count]

    def _forget(self) -> None:
        """Representations that were made before do not hold any more."""
        for sent in self._sent:
            sent.forget()

    def _resize(self, size: int) -> None:
        self._table_bytes = size
        self._smallest_bytes = min(self._smallest_bytes, size)
        self._resized = size != self._told_bytes or self._smallest_bytes < size
        self._evict()
        self._forget()

    def _size_updates(self) -> bytes:
        """The size updates that begin a block: the smallest size since the last block, if the table has grown again,
        and the last (RFC 7541 section 4.2)."""
        if not self._resized:
            return b""
        updates = encode_integer(RESIZE, RESIZE_MAX, self._table_bytes)
        if self._smallest_bytes < self._table_bytes:
            updates = encode_integer(RESIZE, RESIZE_MAX, self._smallest_bytes) + updates
        self._told_bytes = self._smallest_bytes = self._table_bytes
        self._resized = False
        return updates


def _learnt_string(text: bytes) -> bytes:
    """`encode_compact_string`, for what is likely to come again: on this connection's next one, or on another."""
    encoded = _STRINGS.get(text)
    if encoded is None:
        encoded = encode_compact_string(text)
        if len(text) <= _LEARNT_BYTES:
            if len(_STRINGS) >= _LEARNT_LIMIT:
                _STRINGS.clear()
            _STRINGS[text] = encoded
    return encoded
