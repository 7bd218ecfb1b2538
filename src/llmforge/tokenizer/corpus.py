"""Reading the texts that pieces are learned from and that tokenizers are tried on."""

import codecs
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from llmforge.errors import UserError

BATCH_BYTES = 4 << 20
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")


def corpus_files(paths: Sequence[Path]) -> list[Path]:
    """The files of `paths`, directories searched all through, in the order given and by name."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path.")
        if path.is_file():
            if not path.name.endswith(SUFFIXES):
                raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; convert it first.")
            found.append(path)
            continue
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name.endswith(SUFFIXES)]
        inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not inside:
            raise UserError(f"{path} holds no {', '.join(SUFFIXES)} file; check the path.")
        found.extend(inside)
    return found


def batches(file: Path, advance: Callable[[float], None] = lambda _: None) -> Iterator[list[str]]:
    """The texts of one file: a document is a line of jsonl (`source` + `target`, or `text`) or of txt.

    They come as lists from about 4 MB of the file each; `advance` is told the (uncompressed) bytes of each list.
    """
    jsonl = not file.name.endswith(".txt")
    read = 0
    with _open(file) as stream:
        while lines := stream.readlines(BATCH_BYTES):
            advance(float(sum(map(len, lines))))
            if read == 0:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            texts = _decoded(lines, file, read)
            if jsonl:
                yield [_document(text, file, number) for number, text in enumerate(texts, read + 1)]
            else:
                yield [text.rstrip("\r") for text in texts if text and not text.isspace()]
            read += len(lines)


def documents(file: Path, advance: Callable[[float], None] = lambda _: None) -> Iterator[str]:
    """The texts of one file, one after another."""
    for texts in batches(file, advance):
        yield from texts


def all_documents(files: Sequence[Path], advance: Callable[[float], None] = lambda _: None) -> Iterator[str]:
    """The texts of all `files`, one after another."""
    for file in files:
        yield from documents(file, advance)


def _open(file: Path) -> IO[bytes]:
    if file.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(file))
    if file.name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{file} needs the package zstandard: pip install zstandard.") from None
        return io.BufferedReader(zstandard.open(file, "rb"))
    return file.open("rb")


def _decoded(lines: list[bytes], file: Path, before: int) -> list[str]:
    """The `lines` as text, without their ends; `before` is how many lines of the file came before them."""
    try:
        return b"".join(lines).removesuffix(b"\n").decode().split("\n")
    except UnicodeDecodeError:
        for number, line in enumerate(lines, before + 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}, line {number}: not UTF-8 ({error.reason}); convert the file."
                ) from error
        raise  # unreachable: no character reaches over the end of a line


def _document(line: str, file: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}, line {number}: not JSON ({error}); mend or remove the line.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}, line {number}: not a JSON object; mend or remove the line.")
    body = value.get("target", value.get("text"))
    source = value.get("source") or ""
    if not isinstance(body, str) or not isinstance(source, str):
        raise UserError(
            f"{file}, line {number}: neither `target` nor `text` is a text; mend or remove the line."
        )
    text = source + body
    if "\\u" in line:  # JSON can spell half a character, and no tokenizer can read it
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{file}, line {number}: an unpaired surrogate, which is no text; mend or remove the line."
            ) from None
    return text
