"""Where an output and its hidden siblings lie, and that nothing in these places is anybody else's.

    OUT            the output
    .OUT.partial   what is being built; `.plan` in it marks it as llmforge's
    .OUT.replaced  the output before, between the two renames that replace it
    .OUT.lock      held while OUT is built and published

Links are never followed here: one at any of these names is somebody's, and refused.
"""

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.steps.manifest import command_of, read_manifest
from llmforge.steps.verify import unrecorded_entries

PLAN = ".plan"
PLAN_TEXT = re.compile(r"xxh3:[0-9a-f]{32}")
LOCK_TEXT = b"llmforge lock"
NOT_FOLLOWED = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True)
class Place:
    """An output by its real place: links above it are followed, `output` itself is not."""

    output: Path

    @staticmethod
    def of(output: Path) -> "Place":
        try:
            bare = output.name in ("", "..") or output == Path(".")
            real = output.resolve() if bare else output.parent.resolve() / output.name
        except (OSError, RuntimeError) as error:
            raise UserError(f"{output} cannot be used as an output ({error}); choose another.") from error
        if not real.name:
            raise UserError(
                f"{output} was not written by llmforge and cannot be used as an output; choose another."
            )
        return Place(real)

    def _sibling(self, end: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{end}")

    @property
    def partial(self) -> Path:
        return self._sibling("partial")

    @property
    def replaced(self) -> Path:
        return self._sibling("replaced")

    @property
    def lock(self) -> Path:
        return self._sibling("lock")


def check_apart(output: Path, inputs: Sequence[Path], step: str) -> None:
    """Raises `UserError` where `output` is one of `inputs`, contains one or lies inside one: writing it would change
    what it is made from. Places are compared as the file system knows them, so links and mounts do not hide it.
    """
    ours, above_us = _identities(output)
    for path in inputs:
        theirs, above_them = _identities(path)
        if ours & above_them or path.resolve() == output.resolve():
            raise UserError(
                f"{output} is both an input and the output of {command_of(step)} ({path} is there); choose another "
                "output."
            )
        if theirs & above_us and path.is_dir():
            raise UserError(
                f"{output} would be inside {path}, which is an input of {command_of(step)}; choose another output."
            )


def _identities(path: Path) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(device, inode) of `path` if it exists, and of it and everything above it."""
    found = []
    for one in (real := path.resolve(), *real.parents):
        try:
            status = one.stat()
        except OSError:
            continue
        found.append((one, (status.st_dev, status.st_ino)))
    return {identity for one, identity in found if one == real}, {identity for _, identity in found}


def refuse_link(output: Path, flag: str = "") -> None:
    """Raises `UserError` where `output` is a symbolic link: nothing is made, emptied or deleted through one."""
    if output.is_symlink():
        name = f"{flag} {output}" if flag else str(output)
        raise UserError(f"{name} is a symbolic link; give the path that it points to, or remove it.")


def in_the_way(path: Path) -> UserError:
    return UserError(f"{path} exists and was not created by llmforge; move it away.")


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Holds the lock of `place`, whose file goes with it; `UserError` where another process has it, or where nothing
    can be written.
    """
    try:
        place.output.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(place.lock)
    except BlockingIOError:
        raise UserError(
            f"another llmforge process is writing {place.output}; wait for it, or choose another output."
        ) from None
    except OSError as error:
        raise cannot_write(place.output, error) from error
    try:
        yield
    finally:
        if _same(place.lock, descriptor) and os.pread(descriptor, 64, 0).startswith(LOCK_TEXT):
            place.lock.unlink(missing_ok=True)
        os.close(descriptor)


def cannot_write(output: Path, error: OSError) -> UserError:
    return UserError(f"{output} cannot be written ({error.strerror}); choose another output.")


def _acquire(path: Path) -> int:
    """A descriptor of the file `path` that holds its lock."""
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock its holder may have removed it: then this lock is on a file without a name.
            if _same(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NOT_FOLLOWED, 0o666)
        except FileExistsError:
            pass
        else:
            try:
                os.write(descriptor, LOCK_TEXT + b"\n")
            except OSError:  # the disk is full
                path.unlink()
                os.close(descriptor)
                raise
            return descriptor
        try:
            descriptor = os.open(path, os.O_RDWR | NOT_FOLLOWED)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise
        except OSError as error:
            raise in_the_way(path) from error
        text = os.read(descriptor, 64) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b"foreign"
        if text and not text.startswith(LOCK_TEXT):
            os.close(descriptor)
            raise in_the_way(path)
        return descriptor


def _same(path: Path, descriptor: int) -> bool:
    try:
        status, ours = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino)


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A descriptor of the real directory `directory`; `UserError` where there is anything else of that name."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | NOT_FOLLOWED)
    except OSError as error:
        if isinstance(error, (PermissionError, FileNotFoundError)):
            raise
        raise in_the_way(directory) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_partial(place: Place, plan: str, keep: bool) -> None:
    """Makes `place.partial` an empty directory of ours, marked with `plan`. What an interrupted build left there goes,
    or stays if `keep` and it was of the same plan. `UserError` where it is anybody else's.
    """
    partial = place.partial
    if not os.path.lexists(partial):
        partial.mkdir()
    with opened(partial) as descriptor:
        names = set(os.listdir(descriptor))
        held = _plan_of(partial) if PLAN in names else None
        if names - {PLAN} and held is None and not _has_manifest(partial):
            raise in_the_way(partial)
        if keep and held == plan:
            return
        _empty(descriptor, keep=PLAN)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NOT_FOLLOWED
        try:
            with open(os.open(PLAN, flags, 0o666, dir_fd=descriptor), "wb") as file:
                file.write(plan.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk: nothing is in there, so nothing is left behind
            with suppress(OSError):
                os.unlink(PLAN, dir_fd=descriptor)
                partial.rmdir()
            raise


def _plan_of(partial: Path) -> str | None:
    try:
        text = (partial / PLAN).read_bytes()[:64].decode("ascii")
    except (OSError, ValueError):
        return None
    return text if PLAN_TEXT.fullmatch(text) else None


def _has_manifest(directory: Path) -> bool:
    try:
        read_manifest(directory)
    except UserError:
        return False
    return True


def restore_replaced(place: Place) -> None:
    """Undoes a replacement that was cut short between its two renames, or ends one that was cut short after them."""
    replaced = place.replaced
    if not os.path.lexists(replaced):
        return
    with opened(replaced):
        empty = not any(files for _, _, files in os.walk(replaced))
    if not (empty or _has_manifest(replaced)):
        raise in_the_way(replaced)
    if os.path.lexists(place.output):
        remove_output(replaced)
    else:
        replaced.rename(place.output)


def publish(built: Path, output: Path) -> None:
    """Moves the finished directory `built` to `output` (same file system), replacing what llmforge had there."""
    place = Place.of(output)
    refuse_link(place.output)
    sync_directory(built)
    if place.output.is_dir():
        if any(place.output.iterdir()):
            if os.path.lexists(place.replaced):
                with opened(place.replaced):
                    remove_output(place.replaced)
            place.output.rename(place.replaced)
        else:
            place.output.rmdir()
    elif place.output.exists():
        raise in_the_way(output)
    built.rename(place.output)
    sync_directory(place.output.parent)
    if os.path.lexists(place.replaced):
        remove_output(place.replaced)


def remove_output(directory: Path) -> None:
    """Deletes an output that was replaced; where somebody has put files into it meanwhile, it gets a name that can be
    seen instead.
    """
    try:
        manifest = read_manifest(directory)
    except UserError:
        remove_tree(directory)
        return
    foreign = unrecorded_entries(directory, manifest)
    if not foreign:
        remove_tree(directory)
        return
    name = directory.name.removeprefix(".").removesuffix(".replaced")
    kept = next(
        path
        for number in range(1, 1 << 30)
        if not os.path.lexists(path := directory.with_name(f"{name}.kept-{number}"))
    )
    directory.rename(kept)
    warn(
        f"{foreign[0].name} was added to an output that has now been replaced; the old output is kept as {kept}."
    )


def remove_tree(directory: Path) -> None:
    """Deletes `directory` and all in it; links in it go, and what they point to stays."""
    with opened(directory) as descriptor:
        _empty(descriptor)
    directory.rmdir()


def empty_directory(directory: Path) -> None:
    """Deletes everything in `directory`, which must be no link; links in it go, and what they point to stays."""
    with opened(directory) as descriptor:
        _empty(descriptor)


def _empty(descriptor: int, keep: str | None = None) -> None:
    """By descriptors throughout: a directory that becomes a link meanwhile is not followed."""
    for root, directories, files, inner in os.fwalk(".", topdown=False, dir_fd=descriptor):
        for name in files:
            if not (root == "." and name == keep):
                os.unlink(name, dir_fd=inner)
        for name in directories:
            if stat.S_ISLNK(os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=inner)
            else:
                os.rmdir(name, dir_fd=inner)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(directory: Path) -> int:
    """Free space on the file system of `directory`, or of the nearest directory above it that exists."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
