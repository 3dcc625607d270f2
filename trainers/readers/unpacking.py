"""Bytes of a source, unpacked a block at a time and within bounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

GZIP_READ_BYTES = 64 << 10
ZSTANDARD_READ_BYTES = 512
"""A hostile block of 4 bytes unfolds to 128 KiB, so this one to 16 MiB at most."""
PLAIN_BYTES = 256 << 10
STEP_BYTES = 1 << 20
MAX_WINDOW_BYTES = 32 << 20
MIN_UNPACKED_BYTES = 256 << 20
"""Less than this is no bomb, however well it was packed."""
MAX_EXPANSION = 500
"""Logs with long prompts that repeat pack to about a hundredth."""

GZIP, ZSTANDARD, PARQUET, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04"


class Damaged(Exception):
    """The data ends too soon, is no such compression, or unfolds without end."""

    def __init__(self, reason: str, position: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


def unpacked(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of the content.

    Args:
        head: the first bytes, already read; they tell the compression, whatever the name says.

    Raises:
        Damaged: after the blocks that were good.
    """
    if head.startswith(GZIP):
        yield from _bounded(_gzip(_chunks(head, stream, GZIP_READ_BYTES)))
    elif head.startswith(ZSTANDARD):
        yield from _bounded(_zstandard(_chunks(head, stream, ZSTANDARD_READ_BYTES)))
    elif head.startswith(ZIP):
        raise Damaged("a zip archive: unpack it and import the files", "byte 0")
    else:
        if head:
            yield head
        while block := stream.read(PLAIN_BYTES):
            yield block


def _chunks(head: bytes, stream: BinaryIO, size: int) -> Iterator[bytes]:
    for start in range(0, len(head), size):
        yield head[start : start + size]
    while chunk := stream.read(size):
        yield chunk


def _bounded(pairs: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    given = 0
    for taken, block in pairs:
        given += len(block)
        allowed = max(MIN_UNPACKED_BYTES, MAX_EXPANSION * taken)
        if given > allowed:
            yield block[: max(1, len(block) - (given - allowed))]
            raise Damaged(
                f"it unfolds to more than {MAX_EXPANSION} times its size",
                f"compressed byte {taken}",
            )
        if block:
            yield block


def _gzip(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """(compressed bytes so far, block) of the members one after another."""
    member, begun, taken = zlib.decompressobj(wbits=31), False, 0
    for chunk in chunks:
        taken += len(chunk)
        while chunk:
            try:
                block = member.decompress(chunk, STEP_BYTES)
            except zlib.error:
                raise Damaged(
                    "the compressed data is damaged", f"compressed byte {taken}"
                ) from None
            begun = True
            yield taken, block
            chunk = member.unconsumed_tail
            if member.eof:
                chunk = member.unused_data.lstrip(b"\0")  # members may be padded
                member, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise Damaged("the file is cut off", f"compressed byte {taken}")


def _zstandard(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame, begun, taken = decompressor.decompressobj(), False, 0
    for chunk in chunks:
        taken += len(chunk)
        while chunk:
            try:
                block = frame.decompress(chunk)
            except zstandard.ZstdError:
                raise Damaged(
                    "the compressed data is damaged", f"compressed byte {taken}"
                ) from None
            begun, chunk = True, b""
            if frame.eof:
                chunk = frame.unused_data
                frame, begun = decompressor.decompressobj(), False
            yield taken, block
    if begun:
        raise Damaged("the file is cut off", f"compressed byte {taken}")
