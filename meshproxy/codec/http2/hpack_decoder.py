"""Header blocks read (RFC 7541).

Most blocks of a connection hold what came before, so memories stand around the format's own table: whole blocks and
long literals (of the connection), short literals and names (of the process). A field that is found in any of them is
the tuple that it was the first time: nothing is decoded, checked or copied again.
"""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import REQUEST_ID, TRACE, bits_of
from meshproxy.codec.http2.field_rules import is_field_name, is_field_value
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
    PLAIN_MAX,
    RESIZE,
    RESIZE_MAX,
    STATIC_SIZE,
    STATIC_TABLE,
)
from meshproxy.codec.http2.huffman import huffman_decode

_MAX_CONTINUATION: Final = 5  # octets of an integer behind its first: 35 bits, far beyond any block

# What is remembered, in all and each: memory stays bounded, whatever is sent.
_LEARNT_LIMIT: Final = 2048
_LEARNT_BYTES: Final = 128
_LONG_LIMIT: Final = 4  # literals of a connection that are longer, such as a token that may not be indexed
_LONG_BYTES: Final = 4096
_BLOCKS_LIMIT: Final = 16  # of a connection
_BLOCK_BYTES: Final = 256
_NOT_LEARNT: Final = REQUEST_ID | TRACE  # another value in every message


class Entry:
    """A field in a table, with what is to be known of it. It never changes, so tables and blocks share it."""

    def __init__(self, name: bytes, value: bytes, bits: int) -> None:
        self.name: Final = name
        self.field: Final[Any] = (name, value)
        self.bits: Final = bits  # `bits_of(name)`
        self.size: Final = len(name) + len(value) + ENTRY_OVERHEAD_BYTES


class _Block:
    """What a whole block was decoded to."""

    def __init__(self, fields: list[Any], known: int) -> None:
        self.fields: Final = fields
        self.known: Final = known


_STATIC: Final[list[Entry]] = [Entry(name, value, bits_of(name)) for name, value in ((b"", b""), *STATIC_TABLE)]
# Octets of a literal -> its field: for those alone that name their name by itself or by the static table.
_LITERALS: dict[bytes, Entry] = {}
_NAMES: dict[bytes, Entry] = {}  # octets of a name -> an entry of that name


class HpackDecoder:
    """The receiving end of a connection's header compression. `decode()` leaves its results in the attributes."""

    def __init__(self, table_bytes: int, max_list_bytes: int, max_fields: int) -> None:
        """`table_bytes` is our SETTINGS_HEADER_TABLE_SIZE. A message has at most `max_fields` fields, pseudo-headers
        among them, and `max_list_bytes` of names and values, as Envoy counts them."""
        self.fields: list[Any] = []  # of the last block: (name, value); the list is the caller's
        self.known: int = 0  # the union of `bits_of` their names
        self.sensitive: frozenset[bytes] | None = None  # names of those that came as never-indexed
        self.too_large: bool = False  # over one of the limits: `fields` is cut
        self.too_many: bool = False  # … over that of their number
        self.invalid: int = -1  # the first of `fields` that no HTTP/2 message may have (RFC 9113 section 8.2.1)
        self.error: str = ""  # why the last block was refused
        self.version: int = 0  # of the dynamic table: as long as it is the same, equal blocks mean the same
        self._max_list_bytes: Final = max_list_bytes
        self._max_fields: Final = max_fields
        self._setting: Final = table_bytes
        self._limit: int = max(table_bytes, DEFAULT_TABLE_BYTES)  # of what the peer may choose, until it knows ours
        self._resize_due: bool = False
        self._table_bytes: int = DEFAULT_TABLE_BYTES  # what it has chosen
        self._used: int = 0
        self._table: list[Entry] = []  # the newest entry is the last
        self._blocks: dict[bytes, _Block] = {}
        self._long_literals: dict[bytes, Entry] = {}
        self._at: int = 0  # where the last integer, string or literal ended
        self._new: bool = False  # the block holds what was not remembered, or it has changed the table
        self._doubtful: bool = False  # an invalid field has come, and may be in the table
        self._never_indexed: set[bytes] | None = None

    def settings_acknowledged(self) -> None:
        """The peer knows our table's size now. If that is smaller than the table, the next block must begin with a size
        update (RFC 9113 section 4.3.1)."""
        self._limit = self._setting
        if self._table_bytes > self._limit:
            self._resize_due = True
            self._blocks.clear()
            self.version += 1

    def table_size(self) -> int:
        """Bytes in the dynamic table, as RFC 7541 section 4.1 counts them."""
        return self._used

    def decode(self, block: bytes) -> bool:
        """Decode a whole header block. False when it is malformed, a connection error COMPRESSION_ERROR (RFC 9113
        section 4.3): the decoder is of no more use, and `error` says why."""
        self.too_large = self.too_many = False
        self.invalid = -1
        self.sensitive = None
        if len(self._blocks) > 0:
            same = self._blocks.get(block)
            if same is not None:
                self.fields = same.fields.copy()
                self.known = same.known
                return True
        self._new = False
        start = self._resize(block)
        if start < 0 or not self._read_fields(block, start):
            return False
        if self._never_indexed is not None:
            self.sensitive = frozenset(self._never_indexed)
            self._never_indexed = None
        if len(self.fields) > self._max_fields:
            self.too_large = self.too_many = True
            del self.fields[self._max_fields :]
        if self._doubtful:
            self.invalid = _first_invalid(self.fields)
        elif not self._new and not self.too_large and len(block) <= _BLOCK_BYTES:
            if len(self._blocks) >= _BLOCKS_LIMIT:
                self._blocks.clear()
            self._blocks[block] = _Block(self.fields.copy(), self.known)
        return True

    def _read_fields(self, block: bytes, at: int) -> bool:
        fields: list[Any] = []
        self.fields = fields
        table = self._table
        known = 0
        left = self._max_list_bytes
        most = self._max_fields
        end = len(block)
        while at < end:
            octet = block[at]
            if octet < INDEXED:
                literal = self._literal(block, at, octet)
                if literal is None:
                    return False
                entry = literal
                at = self._at
            else:
                index = octet & INDEXED_MAX
                at += 1
                if index == INDEXED_MAX:
                    index = self._integer(block, at, INDEXED_MAX)
                    at = self._at
                if 0 < index <= STATIC_SIZE:
                    entry = _STATIC[index]
                else:
                    place = len(table) + STATIC_SIZE - index
                    if index <= 0 or place < 0:
                        return self._fail("no such index")
                    entry = table[place]
            left -= entry.size - ENTRY_OVERHEAD_BYTES
            if left >= 0 and len(fields) <= most:  # the rest is decoded for the table's sake, and costs but that
                fields.append(entry.field)
                known |= entry.bits
        self.known = known
        self.too_large = left < 0
        return True

    def _literal(self, block: bytes, start: int, octet: int) -> Entry | None:
        """The field whose literal representation (RFC 7541 section 6.2) begins at `start` with `octet`."""
        if RESIZE <= octet < INSERTED:
            return self._refuse("a size update behind a field")
        largest = INSERTED_MAX if octet >= INSERTED else PLAIN_MAX
        index = octet & largest
        at = start + 1
        if index == largest:
            index = self._integer(block, at, largest)
            at = self._at
        name_at = at
        if index == 0:
            at = self._string_end(block, at)
        end = self._string_end(block, at)
        if index < 0 or end < 0:
            return self._refuse("truncated, or a number too large")
        is_short = end - start <= _LEARNT_BYTES
        if index > STATIC_SIZE or (is_short and NEVER_INDEXED <= octet < RESIZE):
            entry = self._new_literal(block, index, name_at, at)
        else:
            raw = block[start:end]
            entry = _LITERALS.get(raw) if is_short else self._long_literals.get(raw)
            if entry is None:
                entry = self._new_literal(block, index, name_at, at)
                if entry is not None:
                    self._learn(raw, entry)
        self._at = end
        if entry is not None:
            if octet >= INSERTED:
                self._insert(entry)
            elif octet >= NEVER_INDEXED:
                self._never_index(entry.name)
        return entry

    def _new_literal(self, block: bytes, index: int, name_at: int, value_at: int) -> Entry | None:
        self._new = True
        named: Entry | None = None
        if index == 0:
            named = self._name(block, name_at)
        elif index <= STATIC_SIZE:
            named = _STATIC[index]
        else:
            place = len(self._table) + STATIC_SIZE - index
            if place < 0:
                return self._refuse("no such index")
            named = self._table[place]
        value = self._string(block, value_at)
        if named is None or value is None:
            return self._refuse("bad Huffman code")
        if not is_field_value(value):
            self._doubtful = True
        return Entry(named.name, value, named.bits)

    def _learn(self, raw: bytes, entry: Entry) -> None:
        if self._doubtful or entry.bits & _NOT_LEARNT:
            return
        if len(raw) <= _LEARNT_BYTES:
            if len(_LITERALS) >= _LEARNT_LIMIT:
                _LITERALS.clear()
            _LITERALS[raw] = entry
        elif len(raw) <= _LONG_BYTES:
            if len(self._long_literals) >= _LONG_LIMIT:
                self._long_literals.clear()
            self._long_literals[raw] = entry

    def _name(self, block: bytes, at: int) -> Entry | None:
        raw = block[at : self._string_end(block, at)]
        named = _NAMES.get(raw)
        if named is not None:
            return named
        name = self._string(block, at)
        if name is None:
            return None
        named = Entry(name, b"", bits_of(name))
        if not is_field_name(name):
            self._doubtful = True
        elif len(raw) <= _LEARNT_BYTES:
            if len(_NAMES) >= _LEARNT_LIMIT:
                _NAMES.clear()
            _NAMES[raw] = named
        return named

    def _never_index(self, name: bytes) -> None:
        self._new = True
        if self._never_indexed is None:
            self._never_indexed = set()
        self._never_indexed.add(name)

    # -- the dynamic table (RFC 7541 sections 2.3.2 and 4)

    def _insert(self, entry: Entry) -> None:
        """An entry that is larger than the table leaves it empty, which is no error (section 4.4)."""
        self._new = True
        self.version += 1
        self._table.append(entry)
        self._used += entry.size
        if self._used > self._table_bytes:
            self._evict()
        if len(self._blocks) > 0:
            self._blocks.clear()

    def _evict(self) -> None:
        table = self._table
        count = 0
        while self._used > self._table_bytes:
            self._used -= table[count].size
            count += 1
        del table[:count]

    def _resize(self, block: bytes) -> int:
        """Apply the size updates at the beginning of a block, the only place for them (section 4.2). Returns where they
        end, -1 for an error."""
        at = 0
        while at < len(block) and block[at] & ~RESIZE_MAX == RESIZE:
            size = block[at] & RESIZE_MAX
            at += 1
            if size == RESIZE_MAX:
                size = self._integer(block, at, RESIZE_MAX)
                at = self._at
            if size < 0 or size > self._limit:
                self._fail("a size update beyond the setting")
                return -1
            self._table_bytes = size
            self.version += 1
            self._evict()
            self._blocks.clear()
            self._resize_due = False
            self._new = True
        if self._resize_due:
            self._fail("a size update is due")
            return -1
        return at

    # -- integers and strings (RFC 7541 section 5); each ends at `_at`

    def _integer(self, block: bytes, at: int, value: int) -> int:
        """The integer that continues at `at`, behind an octet that holds `value`; -1 when it is truncated or too
        large."""
        shift = 0
        while at < len(block) and shift < 7 * _MAX_CONTINUATION:
            octet = block[at]
            at += 1
            value += (octet & 0x7F) << shift
            if octet < 0x80:
                self._at = at
                return value
            shift += 7
        self._at = at
        return -1

    def _string_end(self, block: bytes, at: int) -> int:
        """Where the string at `at` ends, and in `_at` where its octets begin; -1 when the block ends before."""
        if at < 0 or at >= len(block):
            return -1
        length = block[at] & LENGTH_MAX
        at += 1
        if length == LENGTH_MAX:
            length = self._integer(block, at, LENGTH_MAX)
            if length < 0:
                return -1
            at = self._at
        self._at = at
        end = at + length
        return end if end <= len(block) else -1

    def _string(self, block: bytes, at: int) -> bytes | None:
        """The string at `at`, which is whole; None when its Huffman code is wrong."""
        end = self._string_end(block, at)
        if block[at] >= HUFFMAN:
            return huffman_decode(block, self._at, end)
        return block[self._at : end]

    def _fail(self, error: str) -> bool:
        self.error = error
        return False

    def _refuse(self, error: str) -> Entry | None:
        self.error = error
        return None


def _first_invalid(fields: list[Any]) -> int:
    """The place of the first field that no message may have, -1 when all may be."""
    for i in range(len(fields)):
        name: bytes = fields[i][0]
        value: bytes = fields[i][1]
        if not is_field_name(name) or not is_field_value(value):
            return i
    return -1
