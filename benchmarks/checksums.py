"""How fast outputs are verified: bytes from memory and from the disk, beside reading the same files and nothing else.

python benchmarks/checksums.py [DIRECTORY]    # writes 2 GB there (default: a temporary directory)
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FILES, SIZE = 4, 512 << 20


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        os.environ["XDG_CACHE_HOME"] = place
        from llmforge.steps import checksums

        files = [Path(place) / f"model-{number}.safetensors" for number in range(FILES)]
        for file in files:
            with file.open("wb") as opened:
                for _ in range(SIZE >> 24):
                    opened.write(os.urandom(1 << 24))
                os.fsync(opened.fileno())

        def one_reader() -> None:
            for file in files:
                checksums.checksum(file, from_disk=True)

        def timed(label: str, cold: bool, read: Callable[[], object]) -> None:
            for file in files if cold else []:
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
            checksums._read_now.clear()
            began, cpu = time.monotonic(), time.process_time()
            read()
            wall, cpu = time.monotonic() - began, time.process_time() - cpu
            size = FILES * SIZE / 1e9
            print(f"{label:30} {size / wall:6.2f} GB/s  {size / cpu:6.2f} GB per second of CPU")

        timed("memory, one reader", False, one_reader)
        timed("memory, four readers", False, lambda: checksums.checksums(files, from_disk=True))
        timed("disk, reading alone", True, lambda: [read_alone(file) for file in files])
        timed("disk, one reader", True, one_reader)
        timed("disk, four readers", True, lambda: checksums.checksums(files, from_disk=True))
        checksums._read_now.clear()
        checksums._remembered_lines.cache_clear()
        began = time.monotonic()
        checksums.checksums(files)
        print(f"{'remembered':30} {(time.monotonic() - began) * 1e3:6.2f} ms")


def read_alone(file: Path) -> None:
    buffer = bytearray(4 << 20)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
