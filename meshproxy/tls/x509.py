"""Reads what a proxy wants to know of an X.509 certificate off its DER (RFC 5280), without a cryptographic library.

Nothing here verifies anything: certificates come from a handshake that did, or from a file that OpenSSL has taken.
"""

from __future__ import annotations

import binascii
import hashlib
import ipaddress
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

# GeneralName (RFC 5280 section 4.2.1.6), by the number of its tag.
OTHER_NAME: Final = 0
EMAIL: Final = 1
DNS: Final = 2
URI: Final = 6
IP_ADDRESS: Final = 7

_BOOLEAN: Final = 0x01
_INTEGER: Final = 0x02
_BIT_STRING: Final = 0x03
_OBJECT_ID: Final = 0x06
_UTF8_STRING: Final = 0x0C
_SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_BMP_STRING: Final = 0x1E
_UNIVERSAL_STRING: Final = 0x1C
_STRINGS: Final = frozenset({_UTF8_STRING, 0x12, 0x13, 0x14, 0x16, 0x1A, _UNIVERSAL_STRING, _BMP_STRING})
_EXPLICIT_0: Final = 0xA0
_EXTENSIONS: Final = 0xA3

_KEY_USAGE: Final = "2.5.29.15"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_TLS_FEATURE: Final = "1.3.6.1.5.5.7.1.24"
_SUBJECT_ALT_NAME: Final = "2.5.29.17"
_RSA: Final = "1.2.840.113549.1.1.1"
_EC: Final = "1.2.840.10045.2.1"
_COMMON_NAME: Final = "2.5.4.3"
# The short names of X509_NAME_print_ex.
_NAMES: Final = {
    _COMMON_NAME: "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.17": "postalCode",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.46": "dnQualifier",
    "1.2.840.113549.1.9.1": "emailAddress",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}

PEM_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
PEM_END: Final = b"-----END CERTIFICATE-----"
CRL_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_CRL_END: Final = b"-----END X509 CRL-----"


class DerError(ValueError):
    """Bytes that are no certificate."""


class Der:
    """One element: its tag, and where its content lies."""

    __slots__ = ("begin", "data", "end", "start", "tag")

    def __init__(self, data: bytes, start: int, limit: int) -> None:
        if start + 2 > limit:
            raise DerError("truncated")
        self.data = data
        self.start = start
        self.tag = data[start]
        length = data[start + 1]
        begin = start + 2
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or begin + count > limit:
                raise DerError("bad length")
            length = int.from_bytes(data[begin : begin + count], "big")
            begin += count
        if self.tag & 0x1F == 0x1F or begin + length > limit:
            raise DerError("truncated")
        self.begin = begin
        self.end = begin + length

    def children(self) -> list[Der]:
        """The elements in its content."""
        found: list[Der] = []
        position = self.begin
        while position < self.end:
            element = Der(self.data, position, self.end)
            found.append(element)
            position = element.end
        return found

    def child(self, index: int) -> Der:
        children = self.children()
        if not -len(children) <= index < len(children):
            raise DerError("an element is missing")
        return children[index]

    @property
    def content(self) -> bytes:
        return self.data[self.begin : self.end]

    @property
    def whole(self) -> bytes:
        return self.data[self.start : self.end]


class Certificate:
    """A certificate. Raises DerError when `der` is none."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        outer = Der(der, 0, len(der)).children()
        if len(outer) != 3:
            raise DerError("no certificate")
        fields = outer[0].children()
        if fields and fields[0].tag == _EXPLICIT_0:
            fields = fields[1:]
        if len(fields) < 6:
            raise DerError("no certificate")
        self._serial, _, self._issuer, self._validity, self._subject, self._public_key = fields[:6]
        self._extensions = next((field for field in fields[6:] if field.tag == _EXTENSIONS), None)

    @property
    def subject(self) -> str:
        """As RFC 2253 writes it."""
        return _name_text(self._subject)

    @property
    def raw_subject(self) -> bytes:
        """In DER: to compare."""
        return self._subject.whole

    @property
    def raw_issuer(self) -> bytes:
        """In DER: to compare."""
        return self._issuer.whole

    @property
    def issuer(self) -> str:
        """As RFC 2253 writes it."""
        return _name_text(self._issuer)

    @property
    def common_name(self) -> str:
        """The first CN of the subject; empty where there is none."""
        for relative in self._subject.children():
            for attribute in relative.children():
                if _object_id(attribute.child(0)) == _COMMON_NAME:
                    return _string(attribute.child(1))
        return ""

    @property
    def serial(self) -> str:
        """In hexadecimal, without leading zeros."""
        return self._serial.content.lstrip(b"\0").hex() or "0"

    @property
    def raw_serial(self) -> bytes:
        """Its bytes in DER: to compare."""
        return self._serial.content

    @property
    def serial_content(self) -> str:
        """The bytes of the serial number without leading zeros, in hexadecimal: to compare."""
        return self._serial.content.lstrip(b"\0").hex()

    @property
    def must_staple(self) -> bool:
        """Whether clients demand an OCSP response with it (RFC 7633)."""
        return self._extension(_TLS_FEATURE) is not None

    @property
    def not_before(self) -> datetime:
        return parse_time(self._validity.child(0))

    @property
    def not_after(self) -> datetime:
        return parse_time(self._validity.child(1))

    def alt_names(self) -> list[tuple[int, str]]:
        """(kind, text) of the subject alternative names, in their order."""
        extension = self._extension(_SUBJECT_ALT_NAME)
        if extension is None:
            return []
        found = [(name.tag & 0x1F, _general_name(name)) for name in Der(extension, 0, len(extension)).children()]
        return [(kind, text) for kind, text in found if text is not None]

    def alt_names_of(self, kind: int) -> list[str]:
        return [text for each, text in self.alt_names() if each == kind]

    @property
    def has_alt_names(self) -> bool:
        return self._extension(_SUBJECT_ALT_NAME) is not None

    @property
    def key_type(self) -> str:
        """`RSA`, `ECDSA`, or the object id of another kind."""
        kind = _object_id(self._public_key.child(0).child(0))
        return {_RSA: "RSA", _EC: "ECDSA"}.get(kind, kind)

    @property
    def ec_curve(self) -> str:
        """The object id of the curve of an ECDSA key."""
        return _object_id(self._public_key.child(0).child(1))

    @property
    def rsa_bits(self) -> int:
        """The size of an RSA key's modulus."""
        bits = self._public_key.child(1).content
        modulus = Der(bits, 1, len(bits)).child(0)
        return int.from_bytes(modulus.content, "big").bit_length()

    def allows_key_usage(self, bit: int) -> bool:
        """Whether the key usage extension has this bit, or there is none."""
        extension = self._extension(_KEY_USAGE)
        if extension is None:
            return True
        bits = Der(extension, 0, len(extension)).content[1:]
        return bit // 8 < len(bits) and bool(bits[bit // 8] & (0x80 >> bit % 8))

    @property
    def is_authority(self) -> bool:
        """Whether it may sign others: basic constraints (RFC 5280 section 4.2.1.9)."""
        extension = self._extension(_BASIC_CONSTRAINTS)
        if extension is None:
            return False
        fields = Der(extension, 0, len(extension)).children()
        return bool(fields) and fields[0].tag == _BOOLEAN and fields[0].content != b"\0"

    def fingerprint_sha256(self) -> str:
        return hashlib.sha256(self.der).hexdigest()

    def fingerprint_sha1(self) -> str:
        return hashlib.sha1(self.der, usedforsecurity=False).hexdigest()

    def public_key_sha256(self) -> bytes:
        """The digest of the SubjectPublicKeyInfo."""
        return hashlib.sha256(self._public_key.whole).digest()

    def pem(self) -> str:
        return to_pem(self.der)

    def _extension(self, wanted: str) -> bytes | None:
        if self._extensions is None:
            return None
        for extension in self._extensions.child(0).children():
            if _object_id(extension.child(0)) == wanted:
                return extension.child(-1).content
        return None


def to_pem(der: bytes) -> str:
    """PEM with lines of 64 characters, as OpenSSL writes it."""
    text = b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def url_encoded_pem(der: bytes) -> str:
    """PEM with all but letters, digits and `-_./` in percents, as Envoy encodes it."""
    return quote(to_pem(der), safe="")


def certificates_of_pem(pem: bytes) -> list[Certificate]:
    """Every certificate in PEM text. Raises DerError for a bad one."""
    return [Certificate(der) for der in _ders_of_pem(pem, PEM_BEGIN, PEM_END)]


def issuers_of_revocations(pem: bytes) -> list[bytes]:
    """The names, in DER, of those who have signed the revocation lists in PEM text (RFC 5280 section 5.1). Raises
    DerError for a bad one."""
    return [fields[1].whole for _, fields in _revocation_lists(pem)]


def revoked_in(pem: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(issuer in DER, the content of the serial number) of each certificate that a list in PEM text revokes. Raises
    DerError for a bad one."""
    for der, fields in _revocation_lists(pem):
        lists = [field for field in fields[2:] if field.tag == _SEQUENCE]  # beside times, and extensions
        position, end = (lists[0].begin, lists[0].end) if lists else (0, 0)
        while position < end:
            entry = Der(der, position, end)
            yield fields[1].whole, Der(der, entry.begin, entry.end).content
            position = entry.end


def _revocation_lists(pem: bytes) -> Iterator[tuple[bytes, list[Der]]]:
    """Each with the fields of its tbsCertList, from the algorithm of the signature on."""
    for der in _ders_of_pem(pem, CRL_BEGIN, _CRL_END):
        fields = Der(der, 0, len(der)).child(0).children()
        if fields and fields[0].tag == _INTEGER:  # the version
            fields = fields[1:]
        if len(fields) < 3:
            raise DerError("no revocation list")
        yield der, fields


def _ders_of_pem(pem: bytes, begin: bytes, finish: bytes) -> Iterator[bytes]:
    position = pem.find(begin)
    while position >= 0:
        end = pem.find(finish, position)
        if end < 0:
            raise DerError("no end of PEM")
        try:
            yield binascii.a2b_base64(pem[position + len(begin) : end])
        except binascii.Error as error:
            raise DerError("bad PEM") from error
        position = pem.find(begin, end)


def _object_id(element: Der) -> str:
    if element.tag != _OBJECT_ID:
        raise DerError("an object id was expected")
    numbers: list[int] = []
    value = 0
    for byte in element.content:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(value)
            value = 0
    if not numbers:
        raise DerError("an empty object id")
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


def parse_time(element: Der) -> datetime:
    """UTCTime has two digits of the year, from 1950 to 2049 (RFC 5280 section 4.1.2.5)."""
    text = element.content.decode("ascii", "replace")
    try:
        if element.tag == _UTC_TIME:
            text = ("19" if text[:2] >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise DerError("bad time") from error


def _string(element: Der) -> str:
    if element.tag == _BMP_STRING:
        return element.content.decode("utf-16-be", "replace")
    if element.tag == _UNIVERSAL_STRING:
        return element.content.decode("utf-32-be", "replace")
    return element.content.decode("utf-8" if element.tag == _UTF8_STRING else "latin-1", "replace")


def _general_name(name: Der) -> str | None:
    kind = name.tag & 0x1F
    if kind in {EMAIL, DNS, URI}:
        return name.content.decode("latin-1")
    if kind == IP_ADDRESS:
        return str(ipaddress.ip_address(name.content)) if len(name.content) in {4, 16} else None
    if kind == OTHER_NAME:
        value = name.child(-1).child(0)
        return _string(value) if value.tag in _STRINGS else None
    return None


def _name_text(name: Der) -> str:
    """RFC 2253 section 2: the last relative name first, as X509_NAME_print_ex with XN_FLAG_RFC2253 does."""
    return ",".join(
        "+".join(_attribute_text(attribute) for attribute in reversed(relative.children()))
        for relative in reversed(name.children())
    )


def _attribute_text(attribute: Der) -> str:
    value = attribute.child(1)
    number = _object_id(attribute.child(0))
    if number not in _NAMES:
        return f"{number}=#{value.whole.hex().upper()}"
    if value.tag not in _STRINGS:
        return f"{_NAMES[number]}=#{value.whole.hex().upper()}"
    return f"{_NAMES[number]}={_escape(_string(value))}"


def _escape(text: str) -> str:
    """RFC 2253 section 2.4; what is not printable ASCII stands in hexadecimal, byte by byte of its UTF-8."""
    out: list[str] = []
    last = len(text) - 1
    for index, character in enumerate(text):
        code = ord(character)
        if code < 0x20 or code >= 0x7F:
            out.extend(f"\\{byte:02X}" for byte in character.encode())
        elif character in ',+"\\<>;' or (character == " " and index in (0, last)) or (character == "#" and index == 0):
            out.append("\\" + character)
        else:
            out.append(character)
    return "".join(out)
