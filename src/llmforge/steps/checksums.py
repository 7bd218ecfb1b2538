"""XXH3-128 of whole files, remembered by what the file system says of a file, so that it is read once.

A checksum is `xxh3:` and 32 hexadecimal digits (it finds damage; it is no defense against forgers).
"""

import os
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

from llmforge.errors import UserError

READ_BYTES = 4 << 20
READERS = 4
REMEMBERED_FROM = 1 << 20  # smaller files are read again as fast as they are looked up
MOST_REMEMBERED = 4 << 20  # bytes of the file of checksums, some 35,000 of them; then it begins again


@dataclass(frozen=True)
class Identity:
    """What changes when the content of a file does. ctime cannot be set, as mtime can."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> "Identity":
        return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_settled(self) -> bool:
        """Whether a change from now on would get another time: not where the file was written just now, within
        the resolution of the clock of its file system (2 s where times are whole seconds).
        """
        resolution = 2_000_000_000 if self.ctime_ns % 1_000_000_000 == 0 else 100_000_000
        return abs(time.time_ns() - self.ctime_ns) > resolution

    def key(self) -> bytes:
        return f"{self.device} {self.inode} {self.size} {self.mtime_ns} {self.ctime_ns}".encode()


_read_now: dict[Identity, str] = {}
_ahead: list[threading.Thread] = []


def checksum(path: Path, *, from_disk: bool = False) -> str:
    """The checksum of the regular file `path`; `UserError` for anything else, and where it is being written to.

    What an earlier call or an earlier command has read is not read again while the file is the same to the file
    system; with `from_disk` only what this process itself has read counts, as damage of a disk changes no times.
    """
    for thread in _ahead:
        thread.join()
    return _checksum(path, from_disk=from_disk)


def _checksum(path: Path, *, from_disk: bool) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file; write its contents to a file and give that file.")
        identity = Identity.of(status)
        known = _read_now.get(identity) or (None if from_disk else _remembered(identity))
        if known:
            return known
        digest = xxhash.xxh3_128()
        buffer = memoryview(bytearray(min(max(status.st_size, 1), READ_BYTES)))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
        after = Identity.of(os.fstat(descriptor))
    if (after.size, after.mtime_ns) != (identity.size, identity.mtime_ns):
        raise UserError(
            f"{path} changed while it was read; wait until it is complete, then run the command again."
        )
    made = f"xxh3:{digest.hexdigest()}"
    if after == identity and identity.size >= REMEMBERED_FROM and identity.is_settled():
        _remember(identity, made)
    return made


def checksums(paths: Sequence[Path], *, from_disk: bool = False) -> list[str]:
    """The checksums of `paths`, several files at once where they are large."""
    if len(paths) < 2 or sum(path.stat().st_size for path in paths) < REMEMBERED_FROM * READERS:
        return [checksum(path, from_disk=from_disk) for path in paths]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda path: checksum(path, from_disk=from_disk), paths))


def read_ahead(paths: Sequence[Path]) -> None:
    """Begins to read the files at and below `paths` while this process does something else; the next `checksum` waits for
    it. What is wrong with a file is said by who asks for its checksum.
    """

    def read() -> None:
        for path in paths:
            below = (Path(top, name) for top, _, names in os.walk(path) for name in names)
            for file in below if path.is_dir() else [path]:
                with suppress(OSError, UserError):
                    status = file.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_size >= REMEMBERED_FROM:
                        _checksum(file, from_disk=False)

    _ahead.append(threading.Thread(target=read, daemon=True))
    _ahead[-1].start()


def checksum_of(data: bytes) -> str:
    """The checksum of `data`."""
    return f"xxh3:{xxhash.xxh3_128(data).hexdigest()}"


# The file of checksums: a line each, `device inode size mtime ctime checksum check`, appended in one write. Whatever
# else is in it (a line cut short, damage, two lines in one) fails its check and is skipped.


def cache_file() -> Path | None:
    """Where checksums are remembered; None where the user has no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return base / "llmforge" / "checksums"


@cache
def _remembered_lines() -> bytes:
    path = cache_file()
    try:
        if path is None or path.stat().st_size > 2 * MOST_REMEMBERED or not path.is_file():
            return b""
        return b"\n" + path.read_bytes()
    except OSError:
        return b""


def _remembered(identity: Identity) -> str | None:
    lines, wanted = _remembered_lines(), b"\n" + identity.key() + b" "
    at = lines.rfind(wanted)
    if at < 0:
        return None
    line, _, _ = lines[at + 1 :].partition(b"\n")
    entry, _, check = line.rpartition(b" ")
    if xxhash.xxh3_64_hexdigest(entry).encode() != check:
        return None
    return entry.rpartition(b" ")[2].decode()


def _remember(identity: Identity, made: str) -> None:
    """Best effort: without a place to write, files are read again the next time."""
    _read_now[identity] = made
    path = cache_file()
    if path is None:
        return
    entry = identity.key() + b" " + made.encode()
    line = entry + b" " + xxhash.xxh3_64_hexdigest(entry).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                if os.fstat(descriptor).st_size > MOST_REMEMBERED:
                    os.ftruncate(descriptor, 0)
                os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError:
        return
