"""What this machine has. Nothing heavy is imported in this process: packages are looked at by probe.py."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from llmforge import __version__
from llmforge.weights.memory import free_memory, total_memory

PROBE_SECONDS = 180.0
PACKAGES = (
    *(
        "torch",
        "transformers",
        "colossalai",
        "flash-attn",
        "apex",
        "sentencepiece",
        "gigatoken",
        "tokenizers",
    ),
    *("datasets", "peft"),
)


def collect() -> dict[str, Any]:
    """Facts as JSON values: `system`, `packages` by name, and `tools`. Sizes are bytes; None means not there."""
    with ThreadPoolExecutor(min(4, cores())) as pool:
        packages = dict(zip(PACKAGES, pool.map(look_at, PACKAGES), strict=True))
    return {"system": system(), "packages": packages, "tools": tools()}


def system() -> dict[str, Any]:
    total, free = memory()
    return {
        "llmforge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "memory": total,
        "memory_free": free,
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "directory": str(Path.cwd()),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> tuple[int, int]:
    """Bytes of memory in all and free, no more than the container allows."""
    return total_memory(), free_memory()


def look_at(package: str) -> dict[str, Any] | None:
    """`version`, and `error` where it does not import; more for torch. None where it is not installed."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llmforge.doctor.probe", package],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"error": f"does not import within {PROBE_SECONDS:.0f} seconds"}
    except (ValueError, IndexError):
        found = {"error": ending(done.returncode)}
    return {"version": version, **found}


def ending(code: int) -> str:
    """How a probe ended that printed nothing."""
    return (
        f"crashes on import ({signal.Signals(-code).name})" if code < 0 else f"ends Python with code {code}"
    )


def tools() -> dict[str, str | None]:
    """Programs, with a version or a path, and CUDA_HOME."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    return {
        "nvcc": version_of(nvcc, "--version", r"release ([\d.]+)"),
        "CUDA_HOME": home,
        "c++": version_of(shutil.which("c++") or shutil.which("g++"), "--version", r"(\d+\.\d+(\.\d+)?)"),
        "ninja": version_of(shutil.which("ninja"), "--version", r"([\d.]+)"),
        "ssh": version_of(shutil.which("ssh"), "-V", r"OpenSSH_(\S+?),?\s"),
        "sshd": shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin"),
    }


def version_of(program: str | None, flag: str, pattern: str) -> str | None:
    """The version that a program tells of itself; None where there is no program."""
    if program is None:
        return None
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "of unknown version"
