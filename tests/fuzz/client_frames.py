"""The frames that a client sends, and the pieces in which they come."""

from __future__ import annotations

import struct
from random import Random


def client_frame(
    first: int, payload: bytes = b"", mask: bytes = b"\1\2\3\4", form: int = 0
) -> bytes:
    """Return a frame of a client, perhaps with a length that could be shorter."""
    size = len(payload)
    form = form or (size if size < 126 else 126 if size < 65_536 else 127)
    long = {126: struct.pack(">H", size % 65_536), 127: struct.pack(">Q", size)}.get(form, b"")
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((first, 0x80 | form)) + long + mask + masked


def pieces(data: bytes) -> list[bytes]:
    """Return bytes in pieces: somehow, and the same each time."""
    rng = Random(data)
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


FRAME_SEEDS = [
    client_frame(0x81, b"text"),
    client_frame(0x81, "é€😀".encode()),
    client_frame(0x82, b"\xff" * 200),
    client_frame(0x01, b"\xe2") + client_frame(0x89, b"p") + client_frame(0x80, b"\x82\xac"),
    client_frame(0x88, b"\x03\xe8bye") + client_frame(0x81, b"after"),
    client_frame(0x8A) + client_frame(0x81, b"x" * 1_000),
    client_frame(0x81, b"x" * 1_001),
    b"".join(client_frame(0x01 if not n else 0x00) for n in range(1_030)),
    b"\x81\xff" + b"\xff" * 8,
    b"GET / HTTP/1.1\r\n\r\n",
]
