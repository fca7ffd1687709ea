"""The constants of HPACK: the static table and the Huffman code (RFC 7541 appendices A and B)."""

from __future__ import annotations

from typing import Final

DEFAULT_TABLE_BYTES: Final = 4096  # of the dynamic table, until SETTINGS say otherwise (RFC 9113 section 6.5.2)
ENTRY_OVERHEAD_BYTES: Final = 32  # added to the name and value of an entry (RFC 7541 section 4.1)

# The first octet of a field's representation (RFC 7541 section 6): its pattern, and the largest number that the
# rest of the octet holds, with which a longer one begins (section 5.1).
INDEXED: Final = 0x80
INDEXED_MAX: Final = 0x7F
INSERTED: Final = 0x40  # a literal with incremental indexing
INSERTED_MAX: Final = 0x3F
RESIZE: Final = 0x20  # a size update of the dynamic table
RESIZE_MAX: Final = 0x1F
NEVER_INDEXED: Final = 0x10
PLAIN: Final = 0x00  # a literal without indexing
PLAIN_MAX: Final = 0x0F  # of NEVER_INDEXED, too
HUFFMAN: Final = 0x80  # in the first octet of a string's length (section 5.2)
LENGTH_MAX: Final = 0x7F

STATIC_SIZE: Final = 61
# Appendix A; the first one has the index 1.
STATIC_TABLE: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)

# Appendix B: bits of every octet's code, and of EOS, which is the last. The code is canonical: in the order of their
# length, and of their number among those of one length, each code is the one before plus one.
HUFFMAN_LENGTHS: Final[tuple[int, ...]] = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)  # fmt: skip
EOS: Final = 256


def huffman_codes() -> list[int]:
    """The code of every octet and of EOS, as numbers of `HUFFMAN_LENGTHS` bits."""
    codes = [0] * len(HUFFMAN_LENGTHS)
    code = 0
    for bits in range(min(HUFFMAN_LENGTHS), max(HUFFMAN_LENGTHS) + 1):
        code <<= 1
        for symbol, length in enumerate(HUFFMAN_LENGTHS):
            if length == bits:
                codes[symbol] = code
                code += 1
    return codes
