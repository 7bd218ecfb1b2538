"""How much main memory this process may have: the machine's, or less where its control group is limited."""

import os
from collections.abc import Iterator
from pathlib import Path

# (limit, use, the part of memory.stat that is given back when memory runs short), of version 2 and version 1.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def total_memory(root: Path = Path("/")) -> int:
    """Bytes that the process may use at most."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit, _ in _limits(root))])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free now, what caches would give back included."""
    machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            machine = int(value.split()[0]) * 1024
    return max(0, min([machine, *(limit - used for limit, used in _limits(root))]))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use without caches) in bytes of the control groups of this process, from its own to the outermost."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else "memory")
        group = mount / path.strip("/")
        # In a container the path may be that on the host, while the mount shows the container's own group.
        for place in (*(p for p in (group, *group.parents) if p.is_relative_to(mount)), mount):
            for limit_file, use_file, cache in FILES:
                limit, used = _number(place / limit_file), _number(place / use_file)
                if limit is None or used is None:
                    continue
                stat = dict(line.split() for line in _lines(place / "memory.stat"))
                yield limit, used - int(stat.get(cache, 0))


def _number(path: Path) -> int | None:
    """None where the file is not there, or says that there is no limit."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
