"""Which files an input holds, what category they are, and into which chunks their reading is divided.

The chunks are a pure function of the files, so every machine that sees the same input divides it alike.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmforge.console import warn
from llmforge.corpus.chunk import Chunk
from llmforge.errors import UserError, missing

# Small enough that work is shared evenly and little is lost to a kill, large enough that 10 TB make few
# files.
SMALLEST_CHUNK, LARGEST_CHUNK, WANTED_CHUNKS = 4 << 20, 1 << 30, 4096
NAMED = 5
# What lies beside the texts of a dataset and is none: llmforge's own manifests, and what `datasets` keeps.
DESCRIPTIONS = ("llmforge.json", "state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json")
CARDS = ("readme", "license", "licence", "notice", "changelog", "contributing", "authors")
SPECIAL = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def find_chunks(inputs: Sequence[Path], lines: bool = False) -> list[Chunk]:
    """All chunks of `inputs` (directories or files), in order; a `UserError` where there is nothing to
    read. `lines`: a line of a text file is a document.
    """
    from llmforge.corpus.formats import format_of

    files = list(_find_files(inputs))
    if not files:
        raise UserError(f"{', '.join(map(printable, inputs))}: no readable files found ({readable()}).")
    total = sum(path.stat().st_size for path, _, _ in files)
    wanted = min(max(total // WANTED_CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
    chunks: list[Chunk] = []
    for path, name, category in files:
        kind, compression = suffixes(path.name)
        size = path.stat().st_size
        ranges = [(0, size, size)]
        if not compression:
            ranges = format_of(kind).ranges(path, size, wanted, lines)
        for start, stop, share in ranges:
            chunks.append(
                Chunk(len(chunks), str(path), name, kind, compression, category, start, stop, share)
            )
    return chunks


def suffixes(name: str) -> tuple[str, str]:
    """The suffix of a file's format and of its compression, in small letters: `A.JSON.gz` is (.json, .gz).

    ("", "") where it has none that is known.
    """
    from llmforge.corpus.formats import FORMATS
    from llmforge.corpus.streams import COMPRESSIONS

    parts = [f".{part}" for part in name.lower().split(".")[1:]]
    compression = parts.pop() if parts and parts[-1] in COMPRESSIONS else ""
    kind = parts[-1] if parts else ""
    known = kind in FORMATS and not (compression and not FORMATS[kind].compressible)
    return (kind, compression) if known else ("", "")


def readable() -> str:
    """The suffixes of all files that can be read."""
    from llmforge.corpus.formats import FORMATS

    return ", ".join([*FORMATS, "those of text also with .gz or .zst"])


def default_categories(inputs: Sequence[Path]) -> list[str]:
    """The category of documents directly in each input: the name of the directory, or of the dataset that it is a
    snapshot of.
    """
    return [printable(_own_name((path.parent if path.is_file() else path).resolve())) for path in inputs]


def _own_name(directory: Path) -> str:
    snapshots = directory.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("datasets--"):
        return snapshots.parent.name.rpartition("--")[2]
    return directory.name


def labeled(words: Sequence[str]) -> list[tuple[str | None, Path]]:
    """`[LABEL=]PATH` words as (label or None, path); a word that is a path as a whole has no label."""
    found: list[tuple[str | None, Path]] = []
    for word in words:
        label, equals, path = word.partition("=")
        if not equals or os.path.lexists(os.path.expanduser(word)):
            found.append((None, Path(word).expanduser()))
        else:
            found.append((label, Path(path).expanduser()))
    return found


def own_label(path: Path) -> str:
    """What texts are called that were given no label: the name of the file or directory."""
    return printable(path.name.split(".")[0] or path.name or path.resolve().name)


def printable(path: Path | str) -> str:
    """A path as text that every file can hold: bytes of a name that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _find_files(inputs: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """(path, name, category) of every file once: a directory below an input gives its name to what lies in
    it.
    """
    seen: set[tuple[int, int]] = set()
    for root, own_category in zip(inputs, default_categories(inputs), strict=True):
        passed_over: list[tuple[str, Path]] = []
        found = [_given_file(root)] if not root.is_dir() else _data_files(root, passed_over)
        if passed_over:
            warn(_passed_over(root, passed_over))
        if not found:
            warn(f"{printable(root)} contains no readable files ({readable()})")
        for path in found:
            about = path.stat()
            if (about.st_dev, about.st_ino) in seen:
                warn(f"{printable(path)} is given more than once; it is read once")
                continue
            seen.add((about.st_dev, about.st_ino))
            inside = path.relative_to(root).parts if path != root else (path.name,)
            yield path, printable(path), printable(inside[0]) if len(inside) > 1 else own_category


def _given_file(path: Path) -> Path:
    """A file that is given by itself, if it can be read."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise missing(path) from None
        raise UserError(f"{printable(path)} cannot be read ({error.strerror}).") from None
    if kind != stat.S_IFREG:
        raise UserError(
            f"{printable(path)} is a {SPECIAL.get(kind, 'special file')}, which can only be read once and from one "
            "position; write its contents to a file and give that file."
        )
    if not suffixes(path.name)[0]:
        raise UserError(f"{printable(path)} is not a readable file; supported are {readable()}.")
    return path


def _data_files(root: Path, passed_over: list[tuple[str, Path]]) -> list[Path]:
    """The files below `root` that can be read, in the order of their names; what cannot goes to `passed_over`."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); nothing was read.")

    found: list[Path] = []
    above: dict[
        str, list[tuple[int, int]]
    ] = {}  # the directories on the way to each, to see a link that leads back
    for directory, below, names in os.walk(root, onerror=stop, followlinks=True):
        about = os.stat(directory)
        way = [*above.pop(directory, []), (about.st_dev, about.st_ino)]
        if "dataset_dict.json" in names and len(below) > 1:
            splits = ", ".join(printable(name) for name in sorted(below))
            warn(
                f"{printable(directory)} contains several splits, and all are read: {splits}; to read one of them, give its directory"
            )
        visible = []
        for name in sorted(below):
            path = Path(directory, name)
            if name.startswith("."):
                continue
            inner = path.stat()
            if (inner.st_dev, inner.st_ino) in way:
                passed_over.append(("a link to a directory above it", path))
                continue
            visible.append(name)
            above[os.path.join(directory, name)] = way
        below[:] = visible
        for name in names:
            if not name.startswith("."):
                if reason := _unread(Path(directory, name)):
                    passed_over.append((reason, Path(directory, name)))
                else:
                    found.append(Path(directory, name))
    found = [path for path in found if not _is_description(path)]
    if any(suffixes(path.name)[0] not in (".txt", ".md") for path in found):
        cards = [path for path in found if _is_card(path)]
        passed_over += [("README or license files beside records", path) for path in cards]
        found = [path for path in found if path not in set(cards)]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _unread(path: Path) -> str:
    """Why a file in a directory is skipped; "" where it is read."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() else f"cannot be read ({error.strerror})"
    if kind != stat.S_IFREG:
        return f"a {SPECIAL.get(kind, 'special file')}"
    if path.match("cache-*.arrow") and (path.parent / "state.json").exists():
        return "cache files of `datasets`"
    if suffixes(path.name)[0] or _is_description(path):
        return ""
    return path.suffix.lower() or "without a suffix"


def _is_description(path: Path) -> bool:
    return path.name in DESCRIPTIONS or path.name.endswith(".llmforge.json")


def _is_card(path: Path) -> bool:
    return suffixes(path.name)[0] in (".txt", ".md") and path.name.lower().split(".")[0] in CARDS


def _passed_over(root: Path, files: Sequence[tuple[str, Path]]) -> str:
    """One sentence: how many files of which kind, and the first of them by name."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(kind for kind, _ in files).most_common())
    names = [printable(path.relative_to(root)) for _, path in sorted(files, key=lambda item: item[1])]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{printable(root)}: skipped {kinds}: {', '.join(names[:NAMED])}{more}"
