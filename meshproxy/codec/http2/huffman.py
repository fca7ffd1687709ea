"""Strings in HPACK's Huffman code (RFC 7541 section 5.2)."""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from meshproxy.codec.http2.hpack_tables import EOS, HUFFMAN_LENGTHS, huffman_codes

_REFUSED: Final = 3  # among the numbers of symbols that a step ends: it meets EOS, which no string may hold
_ONE_MORE: Final = bytes([1, 2, _REFUSED, _REFUSED, *range(4, 256)])

_CODES: Final[list[int]] = huffman_codes()
_LENGTHS: Final[bytes] = bytes(HUFFMAN_LENGTHS)


class _Machine:
    """Decodes an octet a step.

    A state is an inner node of the code's tree, reached by the bits since the last symbol; 0 is its root. No code is
    shorter than five bits, so that four bits end one symbol at most, and an octet two. The tables are indexed by
    state * 256 + octet; they are made of those for four bits, indexed by state * 16 + bits.
    """

    def __init__(self) -> None:
        self._children: list[list[int]] = [[0, 0]]  # of each node: another one, or -1 - symbol
        self._plant()
        half_counts, half_symbols, half_states = bytearray(), bytearray(), bytearray()
        for node in range(len(self._children)):
            for bits in range(16):
                count, symbol, state = self._half_step(node, bits)
                half_counts.append(count)
                half_symbols.append(symbol)
                half_states.append(state)
        self._half_counts: Final = bytes(half_counts)
        self._half_symbols: Final = bytes(half_symbols)
        self._half_states: Final = bytes(half_states)
        self.counts: Final = bytearray()  # of symbols that the step ends
        self.firsts: Final = bytearray()
        self.seconds: Final = bytearray()
        self.states: Final = bytearray()  # where it leads
        for half in range(len(half_states)):
            self._tabulate(half)
        self.may_end: Final = self._padded_states()

    def _plant(self) -> None:
        for symbol in range(len(_CODES)):
            code = _CODES[symbol]
            node = 0
            for shift in range(HUFFMAN_LENGTHS[symbol] - 1, 0, -1):
                branch = code >> shift & 1
                if self._children[node][branch] == 0:
                    self._children.append([0, 0])
                    self._children[node][branch] = len(self._children) - 1
                node = self._children[node][branch]
            self._children[node][code & 1] = -1 - symbol

    def _half_step(self, node: int, bits: int) -> tuple[int, int, int]:
        """How many symbols four bits end, which, and the node behind them."""
        count = symbol = 0
        for shift in (3, 2, 1, 0):
            node = self._children[node][bits >> shift & 1]
            if node < 0:
                symbol, node = -1 - node, 0
                count = 1
        return (_REFUSED, 0, 0) if symbol == EOS else (count, symbol, node)

    def _tabulate(self, half: int) -> None:
        """The sixteen steps that begin with the half step `half`."""
        at = self._half_states[half] * 16
        counts = self._half_counts[at : at + 16]
        symbols = self._half_symbols[at : at + 16]
        before = self._half_counts[half]
        self.counts.extend(counts if before == 0 else counts.translate(_ONE_MORE) if before == 1 else [_REFUSED] * 16)
        self.firsts.extend(symbols if before == 0 else [self._half_symbols[half]] * 16)
        self.seconds.extend(symbols)
        self.states.extend(self._half_states[at : at + 16])

    def _padded_states(self) -> bytes:
        """1 for a state that padding may lead to: the beginning of EOS, all ones, shorter than an octet."""
        may_end = bytearray(len(self._children))
        node = 0
        for _ in range(8):
            may_end[node] = 1
            node = self._children[node][1]
        return bytes(may_end)


def _tables() -> list[bytes]:
    machine = _Machine()
    return [
        bytes(table) for table in (machine.counts, machine.firsts, machine.seconds, machine.states, machine.may_end)
    ]


_TABLES: Final[list[bytes]] = _tables()
_COUNTS: Final[bytes] = _TABLES[0]
_FIRSTS: Final[bytes] = _TABLES[1]
_SECONDS: Final[bytes] = _TABLES[2]
_STATES: Final[bytes] = _TABLES[3]
_MAY_END: Final[bytes] = _TABLES[4]


def huffman_decode(data: bytes, start: int, end: int) -> bytes | None:
    """The string whose code stands in `data[start:end]`; None when it holds EOS, or is padded with anything but the
    beginning of EOS, shorter than an octet."""
    counts, firsts, seconds, states = _COUNTS, _FIRSTS, _SECONDS, _STATES
    parts: list[bytes] = []
    word: i64 = 0  # symbols that wait to be a part: seven at most, which a machine word holds
    waiting: i64 = 0
    state: i64 = 0
    at: i64 = start
    stop: i64 = end
    while at < stop:
        octet: i64 = data[at]
        at += 1
        step: i64 = state << 8 | octet
        state = states[step]
        count: i64 = counts[step]
        if count == 0:
            continue
        symbol: i64 = firsts[step]
        word = word << 8 | symbol
        waiting += 1
        if count != 1:
            if count == _REFUSED:
                return None
            symbol = seconds[step]
            word = word << 8 | symbol
            waiting += 1
        if waiting >= 6:
            parts.append(int(word).to_bytes(int(waiting), "big"))
            word = 0
            waiting = 0
    if waiting != 0:
        parts.append(int(word).to_bytes(int(waiting), "big"))
    return b"".join(parts) if _MAY_END[state] else None


def huffman_encode(text: bytes) -> bytes:
    """`text` in Huffman code, padded to whole octets with ones; it may be longer than `text`."""
    codes, lengths = _CODES, _LENGTHS
    parts: list[bytes] = []
    bits: i64 = 0
    held: i64 = 0  # how many bits wait: 31 at most between symbols, and the longest code has 30
    at: i64 = 0
    size: i64 = len(text)
    while at < size:
        octet: i64 = text[at]
        at += 1
        length: i64 = lengths[octet]
        code: i64 = codes[octet]
        bits = bits << length | code
        held += length
        if held >= 32:
            held -= 32
            parts.append(int(bits >> held).to_bytes(4, "big"))
            bits &= (1 << held) - 1
    if held != 0:
        octets: i64 = (held + 7) >> 3
        padding: i64 = (octets << 3) - held
        padded: i64 = ((bits + 1) << padding) - 1
        parts.append(int(padded).to_bytes(int(octets), "big"))
    return b"".join(parts)
