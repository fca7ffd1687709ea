"""What Python's `ssl` cannot express, asked of the same libssl through ctypes: this file, and no other.

CPython keeps an `SSL_CTX*` right behind the object header of an `SSLContext`, and an `SSL*` behind one more pointer in
an `SSLObject`. `AVAILABLE` says whether that holds here and every function was found: it is tried once, at import, with
values that `ssl` itself confirms. Where it is False nothing else in this file may be called, and a field that needs it
is refused.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import logging
import os
import ssl
import sys
import weakref
from typing import Any, Final, Protocol

_log = logging.getLogger("meshproxy.tls")

X509_V_OK: Final = 0
X509_V_ERR_CERT_REJECTED: Final = 28
_X509_V_ERR_UNSPECIFIED: Final = 1
_IGNORABLE_TIMES: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_KEY_EXCHANGE_RSA: Final = 1037  # NID_kx_rsa
_KEY_ENCIPHERMENT: Final = 0x20  # bits of X509_get_key_usage, which has all of them set without the extension
_DIGITAL_SIGNATURE: Final = 0x80

_SET_MODE: Final = 33
_SET_SESSION_CACHE_MODE: Final = 44
_SET_SERVERNAME_CB: Final = 53
_SET_TICKET_KEYS: Final = 59
_SET_STATUS_CB: Final = 63
_SET_STATUS_RESPONSE: Final = 71
_SET_GROUPS_LIST: Final = 92
_SET_SIGALGS_LIST: Final = 98
_GET_CHAIN_CERTS: Final = 115
_GET_PEER_SIGNATURE_NID: Final = 108
_GET_NEGOTIATED_GROUP: Final = 134
_NO_AUTO_CHAIN: Final = 8
_TLSEXT_OK: Final = 0
_TLSEXT_NOACK: Final = 3

_UTF8_PARAMETER: Final = 4
_TICKET_NAME_BYTES: Final = 16
_TICKET_SECRET_BYTES: Final = 32
_IV_BYTES: Final = 16

_P: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int
_TEXT: Final = ctypes.c_char_p
_VERIFY: Final = ctypes.CFUNCTYPE(_INT, _P, _P)
_CHAIN_VERIFY: Final = ctypes.CFUNCTYPE(_INT, _INT, _P)
_STATUS: Final = ctypes.CFUNCTYPE(_INT, _P, _P)
_SERVERNAME: Final = ctypes.CFUNCTYPE(_INT, _P, _P, _P)
_DECRYPTED: Final = ctypes.CFUNCTYPE(_INT, _P, _P, _P, ctypes.c_size_t, _INT, _P)
_TICKET: Final = ctypes.CFUNCTYPE(_INT, _P, _P, _P, _P, _P, _INT)


class _Parameter(ctypes.Structure):
    """OSSL_PARAM."""

    _fields_ = (
        ("key", _TEXT),
        ("kind", ctypes.c_uint),
        ("data", _TEXT),
        ("size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "SSL_CTX_get_options": (ctypes.c_uint64, (_P,)),
    "SSL_CTX_ctrl": (ctypes.c_long, (_P, _INT, ctypes.c_long, _P)),
    "SSL_CTX_callback_ctrl": (ctypes.c_long, (_P, _INT, _P)),
    "SSL_CTX_set_session_id_context": (_INT, (_P, _TEXT, ctypes.c_uint)),
    "SSL_CTX_set_timeout": (ctypes.c_long, (_P, ctypes.c_long)),
    "SSL_CTX_get_timeout": (ctypes.c_long, (_P,)),
    "SSL_CTX_set_verify_depth": (None, (_P, _INT)),
    "SSL_CTX_set_cert_verify_callback": (None, (_P, _P, _P)),
    "SSL_CTX_set_ciphersuites": (_INT, (_P, _TEXT)),
    "SSL_CTX_get0_certificate": (_P, (_P,)),
    "SSL_CTX_get0_privatekey": (_P, (_P,)),
    "SSL_CTX_use_cert_and_key": (_INT, (_P, _P, _P, _P, _INT)),
    "SSL_CTX_get_cert_store": (_P, (_P,)),
    "SSL_CTX_set1_cert_store": (None, (_P, _P)),
    "SSL_load_client_CA_file": (_P, (_TEXT,)),
    "SSL_CTX_set_client_CA_list": (None, (_P, _P)),
    "SSL_CTX_get_client_CA_list": (_P, (_P,)),
    "SSL_add_file_cert_subjects_to_stack": (_INT, (_P, _TEXT)),
    "SSL_dup_CA_list": (_P, (_P,)),
    "SSL_get_SSL_CTX": (_P, (_P,)),
    "SSL_get_session": (_P, (_P,)),
    "SSL_SESSION_dup": (_P, (_P,)),
    "SSL_set_session": (_INT, (_P, _P)),
    "SSL_SESSION_free": (None, (_P,)),
    "SSL_SESSION_get_id": (_P, (_P, ctypes.POINTER(ctypes.c_uint))),
    "SSL_SESSION_get0_peer": (_P, (_P,)),
    "SSL_SESSION_is_resumable": (_INT, (_P,)),
    "SSL_CTX_set_session_ticket_cb": (_INT, (_P, _P, _P, _P)),
    "X509_get0_notAfter": (_P, (_P,)),
    "X509_cmp_current_time": (_INT, (_P,)),
    "SSL_ctrl": (ctypes.c_long, (_P, _INT, ctypes.c_long, _P)),
    "SSL_get_servername": (_TEXT, (_P, _INT)),
    "SSL_get_verify_result": (ctypes.c_long, (_P,)),
    "SSL_get_peer_signature_type_nid": (_INT, (_P, ctypes.POINTER(_INT))),
    "X509_verify_cert": (_INT, (_P,)),
    "X509_STORE_CTX_new": (_P, ()),
    "X509_STORE_CTX_init": (_INT, (_P, _P, _P, _P)),
    "X509_STORE_CTX_free": (None, (_P,)),
    "X509_STORE_CTX_get0_param": (_P, (_P,)),
    "X509_STORE_CTX_get0_untrusted": (_P, (_P,)),
    "X509_VERIFY_PARAM_set1": (_INT, (_P, _P)),
    "X509_VERIFY_PARAM_set_flags": (_INT, (_P, ctypes.c_ulong)),
    "X509_STORE_CTX_get0_cert": (_P, (_P,)),
    "X509_STORE_CTX_get_error": (_INT, (_P,)),
    "X509_STORE_CTX_get_error_depth": (_INT, (_P,)),
    "X509_STORE_CTX_set_error": (None, (_P, _INT)),
    "X509_STORE_CTX_set_verify_cb": (None, (_P, _P)),
    "X509_STORE_CTX_get_ex_data": (_P, (_P, _INT)),
    "X509_get_key_usage": (ctypes.c_uint32, (_P,)),
    "SSL_get_ex_data_X509_STORE_CTX_idx": (_INT, ()),
    "SSL_get_pending_cipher": (_P, (_P,)),
    "SSL_CIPHER_get_kx_nid": (_INT, (_P,)),
    "X509_verify_cert_error_string": (_TEXT, (ctypes.c_long,)),
    "i2d_X509": (_INT, (_P, ctypes.POINTER(_TEXT))),
    "OBJ_nid2sn": (_TEXT, (_INT,)),
    "CRYPTO_malloc": (_P, (ctypes.c_size_t, _TEXT, _INT)),
    "ERR_clear_error": (None, ()),
}
# Since OpenSSL 3.
_TICKET_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "SSL_CTX_set_tlsext_ticket_key_evp_cb": (_INT, (_P, _P)),
    "EVP_aes_256_cbc": (_P, ()),
    "EVP_EncryptInit_ex": (_INT, (_P, _P, _P, _TEXT, _TEXT)),
    "EVP_DecryptInit_ex": (_INT, (_P, _P, _P, _TEXT, _TEXT)),
    "EVP_MAC_init": (_INT, (_P, _TEXT, ctypes.c_size_t, _P)),
}


class PeerVerifier(Protocol):
    """Judges a peer's certificate in the course of a handshake."""

    def verify(self, store_context: int) -> bool:
        """With the `X509_STORE_CTX*` of the handshake; False fails it."""


def _load() -> Any:
    """The library that `_ssl` uses: what it links to is found through it; None when a function is missing."""
    try:
        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    except OSError:
        return None
    return library if _declare(library, _FUNCTIONS) else None


def _declare(library: Any, functions: dict[str, tuple[Any, tuple[Any, ...]]]) -> bool:
    """Whether all the functions are there; their types are told to ctypes."""
    for name, (result, arguments) in functions.items():
        function = getattr(library, name, None)
        if function is None:
            return False
        function.restype = result
        function.argtypes = arguments
    return True


_lib: Final[Any] = _load()


def _context_pointer(context: ssl.SSLContext) -> int:
    return int(_P.from_address(id(context) + object.__basicsize__).value or 0)


def _ssl_pointer(ssl_object: ssl.SSLObject) -> int:
    inner = ssl_object._sslobj  # type: ignore[attr-defined]
    return int(_P.from_address(id(inner) + object.__basicsize__ + ctypes.sizeof(_P)).value or 0)


def _self_test() -> bool:
    """Whether the pointers are where they are expected: what is set one way must be read the other."""
    if _lib is None or sys.implementation.name != "cpython":
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    pointer = _context_pointer(context)
    if not _is_mapped(pointer) or _lib.SSL_CTX_get_options(pointer) != int(context.options) & 0xFFFFFFFFFFFFFFFF:
        return False
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    if _lib.SSL_CTX_get_options(pointer) != int(context.options) & 0xFFFFFFFFFFFFFFFF:
        return False
    ssl_object = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    ssl_pointer = _ssl_pointer(ssl_object)
    return _is_mapped(ssl_pointer) and bool(_lib.SSL_get_SSL_CTX(ssl_pointer) == pointer)


def _is_mapped(pointer: int) -> bool:
    """Whether reading at `pointer` ends well."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            begin, _, end = line.split(" ", 1)[0].partition("-")
            if int(begin, 16) <= pointer < int(end, 16):
                return True
    return False


AVAILABLE: Final[bool] = _self_test()
SEVERAL_TICKET_KEYS: Final[bool] = AVAILABLE and _declare(_lib, _TICKET_FUNCTIONS)


# -- settings of a context


def set_session_id_context(context: ssl.SSLContext, identifier: bytes) -> None:
    """Sessions are resumed only where they were made: `identifier` (at most 32 bytes) tells the places apart."""
    if _lib.SSL_CTX_set_session_id_context(_context_pointer(context), identifier, len(identifier)) != 1:
        _fail("the session id context is not accepted")


def accept_server_names(context: ssl.SSLContext) -> None:
    """Any name that a client asks for is right: so sessions remember it, and it is known when they are resumed.
    (Python's own callback fails handshakes over names that are no IDNA.)"""
    _lib.SSL_CTX_callback_ctrl(_context_pointer(context), _SET_SERVERNAME_CB, ctypes.cast(_ON_SERVERNAME, _P))


def _on_servername(_ssl: int, _alert: int, _argument: int) -> int:
    return _TLSEXT_OK


_ON_SERVERNAME: Final = _SERVERNAME(_on_servername)


def send_chain_as_given(context: ssl.SSLContext) -> None:
    """Present the certificates that were loaded and no others, as BoringSSL does. OpenSSL would look for more among
    those that are trusted, in each handshake: clients would be shown what a server trusts."""
    _lib.SSL_CTX_ctrl(_context_pointer(context), _SET_MODE, _NO_AUTO_CHAIN, None)


def set_session_timeout(context: ssl.SSLContext, timeout_s: int) -> None:
    """How long a session may be resumed."""
    _lib.SSL_CTX_set_timeout(_context_pointer(context), timeout_s)


def disable_session_cache(context: ssl.SSLContext) -> None:
    """No sessions are kept in this process; tickets go on."""
    _lib.SSL_CTX_ctrl(_context_pointer(context), _SET_SESSION_CACHE_MODE, 0, None)


def set_ticket_keys(context: ssl.SSLContext, keys: tuple[bytes, ...]) -> None:
    """The keys of session tickets: the first encrypts, all decrypt. A key is 80 bytes, as in Envoy: 16 of name, 32 of
    HMAC, 32 of AES. More than one needs SEVERAL_TICKET_KEYS."""
    if len(keys) == 1:
        _set_ticket_key(context, keys[0])
        return
    pointer = _context_pointer(context)
    _ticket_keys[pointer] = keys
    weakref.finalize(context, _ticket_keys.pop, pointer, None)
    _lib.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, ctypes.cast(_ON_TICKET, _P))


def _set_ticket_key(context: ssl.SSLContext, key: bytes) -> None:
    if _lib.SSL_CTX_ctrl(_context_pointer(context), _SET_TICKET_KEYS, len(key), key) != 1:
        _fail("the session ticket key is not accepted")


def set_curves(context: ssl.SSLContext, names: str) -> None:
    """The groups of the key exchange, by preference, with colons between. Raises ssl.SSLError for an unknown one."""
    if _lib.SSL_CTX_ctrl(_context_pointer(context), _SET_GROUPS_LIST, 0, names.encode()) != 1:
        _fail("unknown curves")


def set_signature_algorithms(context: ssl.SSLContext, names: str) -> None:
    """The signature algorithms, by preference, with colons between. Raises ssl.SSLError for an unknown one."""
    if _lib.SSL_CTX_ctrl(_context_pointer(context), _SET_SIGALGS_LIST, 0, names.encode()) != 1:
        _fail("unknown signature algorithms")


def set_tls13_ciphers(context: ssl.SSLContext, names: str) -> None:
    """The cipher suites of TLS 1.3, by preference, with colons between."""
    if _lib.SSL_CTX_set_ciphersuites(_context_pointer(context), names.encode()) != 1:
        _fail("unknown cipher suites")


def set_verify_depth(context: ssl.SSLContext, depth: int) -> None:
    """How many intermediate certificates a chain may have."""
    _lib.SSL_CTX_set_verify_depth(_context_pointer(context), depth)


def set_client_ca_list(context: ssl.SSLContext, path: str) -> None:
    """The names that a certificate request carries: the subjects of the PEM certificates at `path`."""
    names = _lib.SSL_load_client_CA_file(path.encode())
    if not names:
        _fail("no certificates")
    _lib.SSL_CTX_set_client_CA_list(_context_pointer(context), names)  # takes ownership


def add_client_ca_names(context: ssl.SSLContext, path: str) -> None:
    """As `set_client_ca_list`, in addition to those that there are."""
    names = _lib.SSL_CTX_get_client_CA_list(_context_pointer(context))
    if not names:
        set_client_ca_list(context, path)
    elif _lib.SSL_add_file_cert_subjects_to_stack(names, path.encode()) != 1:
        _fail("no certificates")


def share_certificate(loaded: ssl.SSLContext, context: ssl.SSLContext) -> None:
    """Let `context` present what was loaded into `loaded`: its certificate, key and chain, and no copies of them."""
    source = _context_pointer(loaded)
    chain = _P()
    _lib.SSL_CTX_ctrl(source, _GET_CHAIN_CERTS, 0, ctypes.addressof(chain))
    certificate, key = _lib.SSL_CTX_get0_certificate(source), _lib.SSL_CTX_get0_privatekey(source)
    if _lib.SSL_CTX_use_cert_and_key(_context_pointer(context), certificate, key, chain, 1) != 1:
        _fail("the certificate is not accepted")


def share_authorities(loaded: ssl.SSLContext, context: ssl.SSLContext) -> None:
    """Let `context` trust whom `loaded` trusts, with the same revocation lists (it is the same store), and tell clients
    the same names."""
    source, target = _context_pointer(loaded), _context_pointer(context)
    _lib.SSL_CTX_set1_cert_store(target, _lib.SSL_CTX_get_cert_store(source))
    names = _lib.SSL_CTX_get_client_CA_list(source)
    if names:
        _lib.SSL_CTX_set_client_CA_list(target, _lib.SSL_dup_CA_list(names))


def _fail(reason: str) -> None:
    _lib.ERR_clear_error()
    raise ssl.SSLError(reason)


# -- judging a peer's certificate

# Contexts hold a number, not an object: one that outlives its verifier fails its handshakes.
_verifiers: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()


def set_verifier(context: ssl.SSLContext, verifier: PeerVerifier) -> None:
    """Let `verifier` judge the peers of `context`; the caller keeps it alive."""
    _verifiers[id(verifier)] = verifier
    _lib.SSL_CTX_set_cert_verify_callback(_context_pointer(context), ctypes.cast(_ON_VERIFY, _P), id(verifier))


def _on_verify(store_context: int, argument: int) -> int:
    verifier = _verifiers.get(argument)
    try:
        return 1 if verifier is not None and verifier.verify(store_context) else 0
    except Exception as error:  # noqa: BLE001  no exception crosses C; the handshake fails
        _log.error("error while verifying a certificate", exc_info=error)
        return 0


_ON_VERIFY: Final = _VERIFY(_on_verify)


def verify_chain(store_context: int, *, ignore_times: bool) -> tuple[int, int]:
    """Verify the chain as OpenSSL does: (X509_V_OK or the error, the depth where it is)."""
    if ignore_times:
        _lib.X509_STORE_CTX_set_verify_cb(store_context, ctypes.cast(_IGNORING_TIMES, _P))
    if _lib.X509_verify_cert(store_context) == 1:
        return X509_V_OK, 0
    error = int(_lib.X509_STORE_CTX_get_error(store_context))
    return error or X509_V_ERR_CERT_REJECTED, int(_lib.X509_STORE_CTX_get_error_depth(store_context))


def verify_chain_of(store_context: int, trusted: ssl.SSLContext, flags: int, *, ignore_times: bool) -> tuple[int, int]:
    """As `verify_chain`, but by those whom `trusted` trusts, and with more flags (`ssl.VerifyFlags`)."""
    inner = _lib.X509_STORE_CTX_new()
    if not inner:
        return _X509_V_ERR_UNSPECIFIED, 0
    try:
        store = _lib.SSL_CTX_get_cert_store(_context_pointer(trusted))
        certificate = _lib.X509_STORE_CTX_get0_cert(store_context)
        sent = _lib.X509_STORE_CTX_get0_untrusted(store_context)
        if _lib.X509_STORE_CTX_init(inner, store, certificate, sent) != 1:
            return _X509_V_ERR_UNSPECIFIED, 0
        parameters = _lib.X509_STORE_CTX_get0_param(inner)
        given = _lib.X509_STORE_CTX_get0_param(store_context)
        if _lib.X509_VERIFY_PARAM_set1(parameters, given) != 1:
            return _X509_V_ERR_UNSPECIFIED, 0
        if _lib.X509_VERIFY_PARAM_set_flags(parameters, flags) != 1:
            return _X509_V_ERR_UNSPECIFIED, 0
        return verify_chain(inner, ignore_times=ignore_times)
    finally:
        _lib.X509_STORE_CTX_free(inner)


def _ignoring_times(ok: int, store_context: int) -> int:
    if ok or _lib.X509_STORE_CTX_get_error(store_context) not in _IGNORABLE_TIMES:
        return ok
    _lib.X509_STORE_CTX_set_error(store_context, X509_V_OK)
    return 1


_IGNORING_TIMES: Final = _CHAIN_VERIFY(_ignoring_times)


def key_usage_fits(store_context: int) -> bool:
    """Whether the key usage of a server's certificate allows what this handshake does with it: sign, or, with the plain
    RSA key exchange, decrypt (RFC 5246 section 7.4.2). One without a key usage fits."""
    ssl_pointer = _lib.X509_STORE_CTX_get_ex_data(store_context, _lib.SSL_get_ex_data_X509_STORE_CTX_idx())
    cipher = _lib.SSL_get_pending_cipher(ssl_pointer)
    is_plain_rsa = bool(cipher) and _lib.SSL_CIPHER_get_kx_nid(cipher) == _KEY_EXCHANGE_RSA
    usage = int(_lib.X509_get_key_usage(_lib.X509_STORE_CTX_get0_cert(store_context)))
    return bool(usage & (_KEY_ENCIPHERMENT if is_plain_rsa else _DIGITAL_SIGNATURE))


def set_verify_error(store_context: int, error: int) -> None:
    """What the alert is made of, and `verify_result` of the session."""
    _lib.X509_STORE_CTX_set_error(store_context, error)


def verify_error_text(error: int) -> str:
    """`certificate has expired` …, as BoringSSL, and so Envoy, spells it."""
    text: bytes = _lib.X509_verify_cert_error_string(error)
    return text.decode().replace("self-signed", "self signed")


def leaf_certificate(store_context: int) -> bytes:
    """The peer's certificate, in DER."""
    certificate = _lib.X509_STORE_CTX_get0_cert(store_context)
    size = int(_lib.i2d_X509(certificate, None))
    if size <= 0:
        _fail("a certificate that cannot be encoded")
    buffer = ctypes.create_string_buffer(size)
    end = ctypes.cast(buffer, _TEXT)
    _lib.i2d_X509(certificate, ctypes.byref(end))
    return buffer.raw


# -- session tickets under several keys (RFC 5077 section 4)

_ticket_keys: Final[dict[int, tuple[bytes, ...]]] = {}  # by SSL_CTX*
_RENEW: Final = 2
_DIGEST: Final = (_Parameter * 2)(_Parameter(b"digest", _UTF8_PARAMETER, b"SHA256", 6, 0), _Parameter())


def _on_ticket(ssl_pointer: int, name: int, iv: int, cipher: int, mac: int, encrypts: int) -> int:
    """Prepare the encryption of a new ticket, or the decryption of one that came: 0 for one of an unknown key."""
    keys = _ticket_keys.get(_lib.SSL_get_SSL_CTX(ssl_pointer), ())
    if encrypts:
        if not keys:
            return -1
        ctypes.memmove(name, keys[0], _TICKET_NAME_BYTES)
        ctypes.memmove(iv, os.urandom(_IV_BYTES), _IV_BYTES)
        return _init_ticket(_lib.EVP_EncryptInit_ex, keys[0], iv, cipher, mac)
    wanted = ctypes.string_at(name, _TICKET_NAME_BYTES)
    for index, key in enumerate(keys):
        if key.startswith(wanted):
            done = _init_ticket(_lib.EVP_DecryptInit_ex, key, iv, cipher, mac)
            return _RENEW if done == 1 and index > 0 else done
    return 0


def _init_ticket(init: Any, key: bytes, iv: int, cipher: int, mac: int) -> int:
    middle = _TICKET_NAME_BYTES + _TICKET_SECRET_BYTES
    if init(cipher, _lib.EVP_aes_256_cbc(), None, key[middle:], ctypes.string_at(iv, _IV_BYTES)) != 1:
        return -1
    authentication = key[_TICKET_NAME_BYTES:middle]
    return 1 if _lib.EVP_MAC_init(mac, authentication, len(authentication), _DIGEST) == 1 else -1


_ON_TICKET: Final = _TICKET(_on_ticket)


# -- sessions


class Session:
    """A client's, to be resumed."""

    __slots__ = ("_pointer",)

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer  # a reference of ours

    def __del__(self) -> None:
        _lib.SSL_SESSION_free(self._pointer)

    @property
    def pointer(self) -> int:
        return self._pointer

    @property
    def is_of_expired_peer(self) -> bool:
        """Whether the certificate that the server had shown is not valid any more."""
        return _has_expired_peer(self._pointer)


def session_of(ssl_object: ssl.SSLObject) -> Session | None:
    """The session to be resumed later; None where it cannot be. It is a copy: that of a connection is spoilt when the
    connection ends without a close_notify. (`SSLObject.session` makes one at each access, and never frees it.)"""
    own = _lib.SSL_get_session(_ssl_pointer(ssl_object))
    if not own or _lib.SSL_SESSION_is_resumable(own) != 1:
        return None
    copy = _lib.SSL_SESSION_dup(own)
    return Session(copy) if copy else None


def resume(ssl_object: ssl.SSLObject, session: Session) -> None:
    """Offer the session in the handshake that is to begin."""
    copy = _lib.SSL_SESSION_dup(session.pointer)
    if not copy or _lib.SSL_set_session(_ssl_pointer(ssl_object), copy) != 1:
        _lib.ERR_clear_error()  # then it is a full one
    _lib.SSL_SESSION_free(copy)  # NULL is none; the connection has a reference of its own


def session_id(ssl_object: ssl.SSLObject) -> bytes:
    """Empty where there is none."""
    session = _lib.SSL_get_session(_ssl_pointer(ssl_object))
    if not session:
        return b""
    size = ctypes.c_uint()
    return ctypes.string_at(_lib.SSL_SESSION_get_id(session, ctypes.byref(size)), size.value)


def resumed_expired_peer(ssl_object: ssl.SSLObject) -> bool:
    """Whether the peer's certificate, as it was seen when the session was made, is not valid any more."""
    session = _lib.SSL_get_session(_ssl_pointer(ssl_object))
    return bool(session) and _has_expired_peer(session)


def ignore_tickets_of_expired_peers(context: ssl.SSLContext) -> None:
    """A ticket vouches for its client no longer than the client's certificate was valid: later on there is a full
    handshake, which refuses it."""
    _lib.SSL_CTX_set_session_ticket_cb(_context_pointer(context), None, ctypes.cast(_ON_DECRYPTED, _P), None)


def _has_expired_peer(session: int) -> bool:
    certificate = _lib.SSL_SESSION_get0_peer(session)
    return bool(certificate) and _lib.X509_cmp_current_time(_lib.X509_get0_notAfter(certificate)) <= 0


# SSL_TICKET_STATUS and SSL_TICKET_RETURN
_DECRYPTED_TICKET: Final = 5
_DECRYPTED_TICKET_TO_RENEW: Final = 6
_IGNORE_AND_RENEW: Final = 2
_USE: Final = 3
_USE_AND_RENEW: Final = 4


def _on_decrypted(_ssl: int, session: int, _name: int, _name_size: int, status: int, _argument: int) -> int:
    if status not in (_DECRYPTED_TICKET, _DECRYPTED_TICKET_TO_RENEW) or _has_expired_peer(session):
        return _IGNORE_AND_RENEW
    return _USE if status == _DECRYPTED_TICKET else _USE_AND_RENEW


_ON_DECRYPTED: Final = _DECRYPTED(_on_decrypted)


# -- OCSP staples


class Staple(Protocol):
    """The OCSP response of a context's certificate."""

    def current(self) -> bytes:
        """The response in DER; empty when there is none that may be sent now."""


_staples: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
_SET_STATUS_CB_ARGUMENT: Final = 64


def set_staple(context: ssl.SSLContext, staple: Staple) -> None:
    """Answer clients that ask for the certificate's status; the caller keeps `staple` alive."""
    _staples[id(staple)] = staple
    pointer = _context_pointer(context)
    _lib.SSL_CTX_callback_ctrl(pointer, _SET_STATUS_CB, ctypes.cast(_ON_STATUS, _P))
    _lib.SSL_CTX_ctrl(pointer, _SET_STATUS_CB_ARGUMENT, 0, id(staple))


def _on_status(ssl_pointer: int, argument: int) -> int:
    staple = _staples.get(argument)
    response = staple.current() if staple is not None else b""
    if not response:
        return _TLSEXT_NOACK
    copy = _lib.CRYPTO_malloc(len(response), b"", 0)  # the session frees it
    ctypes.memmove(copy, response, len(response))
    _lib.SSL_ctrl(ssl_pointer, _SET_STATUS_RESPONSE, len(response), copy)
    return _TLSEXT_OK


_ON_STATUS: Final = _STATUS(_on_status)


# -- what is known of a session

# Names as BoringSSL, and so Envoy, prints them.
_CURVES: Final = {"prime256v1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_ECDSA_CURVES: Final = {"sha256": "secp256r1", "sha384": "secp384r1", "sha512": "secp521r1"}


def negotiated_group(ssl_object: ssl.SSLObject) -> str:
    """The group of the key exchange (`X25519`, `P-256` …); empty where there was none."""
    nid = int(_lib.SSL_ctrl(_ssl_pointer(ssl_object), _GET_NEGOTIATED_GROUP, 0, None))
    name = _short_name(nid)
    return _CURVES.get(name, name)


def peer_signature_algorithm(ssl_object: ssl.SSLObject) -> str:
    """What the peer signed the handshake with (`ecdsa_secp256r1_sha256` …); empty where it did not sign."""
    pointer = _ssl_pointer(ssl_object)
    digest, kind = ctypes.c_int(), ctypes.c_int()
    if _lib.SSL_ctrl(pointer, _GET_PEER_SIGNATURE_NID, 0, ctypes.addressof(digest)) != 1:
        return ""
    if _lib.SSL_get_peer_signature_type_nid(pointer, ctypes.byref(kind)) != 1:
        return ""
    hashed, signed = _short_name(digest.value).lower(), _short_name(kind.value)
    if signed == "id-ecPublicKey":
        return "ecdsa_sha1" if hashed == "sha1" else f"ecdsa_{_ECDSA_CURVES.get(hashed, '')}_{hashed}"
    if signed == "RSASSA-PSS":
        return f"rsa_pss_rsae_{hashed}"
    return f"rsa_pkcs1_{hashed}" if signed == "rsaEncryption" else signed.lower()


def requested_server_name(ssl_object: ssl.SSLObject) -> str:
    """The name that the client asked for (SNI); empty for none. Of a resumed session of TLS 1.2, what it asked for when
    the session was made."""
    name: bytes | None = _lib.SSL_get_servername(_ssl_pointer(ssl_object), 0)
    return name.decode("latin-1") if name else ""


def verify_result(ssl_object: ssl.SSLObject) -> int:
    """X509_V_OK, or what was wrong with the peer's chain when the session was made."""
    return int(_lib.SSL_get_verify_result(_ssl_pointer(ssl_object)))


@functools.cache
def _short_name(nid: int) -> str:
    name: bytes | None = _lib.OBJ_nid2sn(nid) if nid else None
    return name.decode() if name else ""
