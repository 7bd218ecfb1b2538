"""Files that are read ahead have the checksums that they have otherwise."""

import os
from pathlib import Path

import pytest
import xxhash

from llmforge.errors import UserError
from llmforge.steps import checksums


def test_what_is_read_ahead_is_read_once_and_nothing_is_said_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "REMEMBERED_FROM", 10)
    monkeypatch.setattr(checksums, "_ahead", [])
    monkeypatch.setattr(checksums.Identity, "is_settled", lambda _: True)
    (tmp_path / "in/below").mkdir(parents=True)
    large, small, single = (tmp_path / name for name in ("in/below/large", "in/small", "single"))
    for path, size in ((large, 5_000_000), (small, 5), (single, 1000)):
        path.write_bytes(os.urandom(size))
    os.mkfifo(tmp_path / "in/fifo")  # whoever opens it as a file waits
    checksums.read_ahead([tmp_path / "in", single, tmp_path / "missing"])
    expected = [f"xxh3:{xxhash.xxh3_128(p.read_bytes()).hexdigest()}" for p in (large, small, single)]
    checksums.checksum(small)
    assert set(checksums._read_now.values()) >= {expected[0], expected[2]}
    assert [checksums.checksum(path) for path in (large, small, single)] == expected
    with pytest.raises(UserError):
        checksums.checksum(tmp_path / "in/fifo")
    with single.open("ab") as file:
        file.write(b"more")
    assert checksums.checksum(single) != expected[2]
