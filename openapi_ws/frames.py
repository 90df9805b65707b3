"""Floor 0, words: whole frames of RFC 6455, as a server sends them: unmasked, in one piece."""

from __future__ import annotations

import struct
import zlib

__all__ = ["can_be_sent", "close_frame", "deflated_frame", "ping_frame", "pong_frame", "text_frame"]

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
"""First bytes: FIN and the opcode (§5.2)."""
REGISTERED = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014)
COMPRESSED = 0x40
"""RSV1 in the first byte (RFC 7692 §6)."""
REASON_LIMIT = 123
"""Bytes of a close reason: a control frame holds 125 (§5.5), two of them the code."""


def text_frame(payload: bytes, first: int = TEXT) -> bytes:
    """A whole, unmasked text frame (§5.2) of UTF-8 *payload*; *first* is its first byte."""
    size = len(payload)
    if size < 126:
        return b"%c%c%b" % (first, size, payload)
    if size < 65536:
        return b"%c\x7e%b%b" % (first, struct.pack("!H", size), payload)
    return b"%c\x7f%b%b" % (first, struct.pack("!Q", size), payload)


def deflated_frame(payload: bytes, window_bits: int) -> bytes:
    """A text frame of *payload*, compressed (RFC 7692 §7.2.1) with a window of 2 ** *window_bits*, 9 to 15.

    It depends on no frame before it, whatever was negotiated: so many clients may share it.
    """
    deflate = zlib.compressobj(1, zlib.DEFLATED, -window_bits)
    data = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return text_frame(data[:-4], TEXT | COMPRESSED)


def can_be_sent(code: int) -> bool:
    """A close frame may carry *code* (§7.4, and the registry of IANA)."""
    return isinstance(code, int) and (code in REGISTERED or 3000 <= code < 5000)


def close_frame(code: int, reason: str) -> bytes:
    """A whole close frame (§5.5.1); *reason* is cut at 123 bytes, between characters.

    Raises:
        ValueError: no frame may carry *code*.
    """
    if not can_be_sent(code):
        raise ValueError(f"a close code is 1000-1003, 1007-1014 or 3000-4999; got {code!r}")
    text = str.encode(reason, errors="replace")[:REASON_LIMIT].decode(errors="ignore").encode()
    return b"%c%c%b%b" % (CLOSE, len(text) + 2, struct.pack("!H", code), text)


def ping_frame() -> bytes:
    """A ping without payload (§5.5.2)."""
    return b"%c\0" % PING


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping with *payload*, at most 125 bytes (§5.5.3)."""
    return b"%c%c%b" % (PONG, len(payload), payload)
