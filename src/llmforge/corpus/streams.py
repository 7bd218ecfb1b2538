"""The bytes of a file, decompressed where it is compressed, and its whole lines; memory is bounded whatever it holds."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from llmforge.corpus.block import Rejection
from llmforge.corpus.chunk import Chunk
from llmforge.errors import UserError

COMPRESSIONS = (".gz", ".zst")
# Four bytes of zstd can stand for 128 KiB, so that this many can stand for 256 MiB; of gzip for 8.
PIECE_BYTES = 8 << 10
BUFFER_BYTES, PORTION_BYTES = 1 << 20, 8 << 20
# Text shrinks to a third or a tenth. What grows more than this, beyond the first of these bytes, was made to.
LARGEST_RATIO, UNCHECKED_BYTES = 200, 64 << 20
LARGEST_WINDOW = 128 << 20
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)


@contextmanager
def open_chunk(chunk: Chunk) -> Iterator[tuple[IO[bytes], Any]]:
    """The file of a chunk, whose position tells how much was read on disk, and the stream of its bytes.

    `UserError` where the file begins as UTF-16 does.
    """
    with open(chunk.path, "rb", BUFFER_BYTES) as file:
        stream: Any = file
        if chunk.compression:
            stream = io.BufferedReader(_Decompressed(file, chunk), BUFFER_BYTES)
        if not chunk.start:
            try:
                head = stream.peek(64)[:64]
            except DAMAGE:
                head = b""  # whoever reads it meets the same error, and counts it
            # Text in UTF-16 has a zero byte in its first line end or letter; a few stray bytes have none.
            if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head:
                kind = "UTF-32" if b"\0\0" in head[:4] else "UTF-16"
                raise UserError(f"{chunk.name} is {kind}; convert it to UTF-8 (iconv -f {kind} -t UTF-8).")
        yield file, stream


class _Decompressed(io.RawIOBase):
    """A gzip or zstd file, of any number of members or frames; `EOFError` where the last one is cut off."""

    def __init__(self, file: IO[bytes], chunk: Chunk) -> None:
        self.file, self.chunk = file, chunk
        self.decoder: Any = None
        self.compressed = self.plain = b""
        self.read_bytes = self.made_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.plain:
            if not self.compressed:
                self.compressed = self.file.read(PIECE_BYTES)
                self.read_bytes += len(self.compressed)
            if not self.compressed:
                if self.decoder is not None:
                    raise EOFError("the end is missing")
                return 0
            if self.decoder is None and self.chunk.compression == ".gz" and self.read_bytes:
                self.compressed = self.compressed.lstrip(b"\0") if self.made_bytes else self.compressed
                if not self.compressed:
                    continue  # gzip allows zeros behind its last member
            self.decoder = self.decoder or self._new_decoder()
            self.plain = self.decoder.decompress(self.compressed)
            self.compressed = b""
            self.made_bytes += len(self.plain)
            if self.decoder.eof:
                self.compressed, self.decoder = self.decoder.unused_data, None
            if self.made_bytes > max(UNCHECKED_BYTES, LARGEST_RATIO * self.read_bytes):
                raise UserError(
                    f"{self.chunk.name}: {self.read_bytes:,} bytes of it expand to more than {LARGEST_RATIO} times as "
                    "many, as a decompression bomb does; if it is a text, decompress it first."
                )
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size

    def _new_decoder(self) -> Any:
        if self.chunk.compression == ".gz":
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()


def read(stream: Any, size: int) -> tuple[bytes, str]:
    """Up to `size` bytes, fewer at the end of the file; with them what is wrong with the file there, if
    anything.

    `read1` hands over what was decompressed before the damage; `read` would throw it away.
    """
    parts, got = [], 0
    try:
        while got < size and (part := stream.read1(size - got)):
            parts.append(part)
            got += len(part)
    except DAMAGE as error:
        return b"".join(parts), f"the compressed file is damaged or truncated ({str(error).rstrip('.')})"
    return b"".join(parts), ""


def line_blocks(
    chunk: Chunk, block_bytes: int, longest: int, too_long: str
) -> Iterator[tuple[bytes | Rejection, int]]:
    """Blocks of whole lines, or a `Rejection` (line 1: one line, 0: the rest of the file) where something is
    lost; a line of more than `longest` bytes is, for the reason `too_long`.

    With each, how many bytes of the chunk were read so far, on disk.
    """
    with open_chunk(chunk) as (file, stream):
        # How many bytes of this chunk are still unread, where it is part of a plain file.
        left = _seek(chunk, stream)
        held: list[bytes] = []
        size, tail = 0, left is not None  # `tail`: the line in which the chunk ends is still to be read
        while left is None or left > 0 or (tail and size):
            if left is None or left > 0:
                data, damage = read(stream, block_bytes if left is None else min(block_bytes, left))
                left = None if left is None else left - len(data)
            else:
                data, damage, tail = _rest_of_line(stream, longest + 1), "", False
            position = file.tell() - chunk.start
            ended, end = not data, data.rfind(b"\n") + 1
            if end:
                rest = data[end:]
                held = [b"".join([*held, data[:end]])]
                del data
                yield held.pop(), position  # what is handed over, nothing here holds any longer
                held, size = [rest], len(rest)
            else:
                held, size = [*held, data], size + len(data)
            if damage:  # what follows the last newline is not a whole line
                yield Rejection(0, damage), position
                return
            if ended:
                break
            if size > longest:
                held, size = [], 0
                skipped, _ = _skip_line(stream, left)
                left = None if left is None else left - skipped
                yield Rejection(1, f"the line is {too_long}"), position
        if size:
            held = [b"".join(held)]
            yield held.pop(), position


def _rest_of_line(stream: Any, most: int) -> bytes:
    """What `readline` gives, of up to `most` bytes of a plain file; a line of 100 MB in half the time."""
    parts, got = [], 0
    while got < most and (part := stream.read1(min(PORTION_BYTES, most - got))):
        if end := part.find(b"\n") + 1:
            stream.seek(end - len(part), io.SEEK_CUR)
            part = part[:end]
        parts.append(part)
        got += len(part)
        if end:
            break
    return b"".join(parts)


def beginning(chunk: Chunk, size: int) -> bytes:
    """Up to `size` bytes from the first line on that begins in `chunk`; empty where none does or the file is damaged."""
    with open_chunk(chunk) as (_, stream):
        left = _seek(chunk, stream)
        return b"" if left == 0 else read(stream, size)[0]


def _seek(chunk: Chunk, stream: Any) -> int | None:
    """Goes to the first line that begins in `chunk`: how many of its bytes are left then; None of a compressed file."""
    if chunk.compression:
        return None
    left = chunk.stop - chunk.start
    if chunk.start:
        stream.seek(chunk.start - 1)
        # A line that began before belongs to the chunk before; where it continues, so does all of this chunk.
        skipped, ended = _skip_line(stream, left)
        return left - (skipped - 1) if ended else 0
    return left


def _skip_line(stream: Any, most: int | None) -> tuple[int, bool]:
    """Reads past the next newline, at most `most` bytes: how many bytes that were, and whether there was one. A damaged
    file ends there: its next reader meets the damage again.
    """
    skipped = 0
    try:
        while (most is None or skipped < most) and (ahead := stream.peek()):
            window = ahead if most is None else ahead[: most - skipped]
            end = window.find(b"\n") + 1
            skipped += len(stream.read1(end or len(window)))
            if end:
                return skipped, True
    except DAMAGE:
        pass
    return skipped, False
