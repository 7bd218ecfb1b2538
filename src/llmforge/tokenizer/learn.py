"""`learn-pieces`: count the words of a corpus, encode them with the source tokenizer, continue its BPE."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
import tokenizers

from llmforge import console
from llmforge.errors import UserError
from llmforge.tokenizer import bytelevel, corpus
from llmforge.tokenizer.continued_bpe import Learned, Rules, Words, learn
from llmforge.tokenizer.load import Tokenizer, backend_of, load
from llmforge.tokenizer.sentencepiece_model import SPACE
from llmforge.workspace import Finished, Outcome, Step, run_step

MAX_WORDS = 6_000_000
SEPARATOR = "\uffff"  # no character, so in no text
WORDS_TOGETHER, BATCH = 200, 2000
# Words of a sentencepiece tokenizer, cut as its own trainer cuts: a space goes with what is behind it; kanji and kana
# with one another and with no other letters; a digit by itself.
EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
WORD = regex.compile(
    rf"[^\s\p{{L}}\p{{M}}\p{{N}}]?[{EAST_ASIAN}]+|▁?(?:(?![{EAST_ASIAN}])[\p{{L}}\p{{M}}])+|\p{{N}}|▁?[^▁\s\p{{L}}\p{{M}}\p{{N}}]+|▁|\s"
)


def learn_pieces(
    source: Path,
    corpora: Sequence[Path],
    output: Path,
    number: int,
    script: str | None = None,
    min_frequency: int = 2,
    max_length: int = 16,
    seed: int = 0,
    overwrite: bool = False,
) -> Finished:
    """Writes `output`, a jsonl of at most `number` new pieces in the order in which they can be merged.

    `script` keeps to words of one Unicode script ("Han"), `max_length` (characters) bounds a piece, and
    `min_frequency` is the least frequency of a pair when it is merged. `seed` matters only for a corpus of
    more than `MAX_WORDS` different words, of which the rare ones are sampled.
    """
    arguments = {
        "num_pieces": number,
        "script": script,
        "min_frequency": min_frequency,
        "max_length": max_length,
        "seed": seed,
    }
    step = Step("learn-pieces", output, arguments, [source, *corpora], overwrite, single_file=True)
    return run_step(
        step, lambda path: _learn(path, source, corpora, number, script, min_frequency, max_length, seed)
    )


def _learn(
    path: Path,
    source: Path,
    corpora: Sequence[Path],
    number: int,
    script: str | None,
    min_frequency: int,
    max_length: int,
    seed: int,
) -> Outcome:
    tokenizer = load(source)
    wanted = script_pattern(script)
    files = corpus.corpus_files(corpora)
    with console.progress("reading", float(sum(f.stat().st_size for f in files)), "bytes") as advance:
        counted, metrics = count_words(corpus.all_documents(files, advance), cutter(tokenizer, wanted), seed)
    if not counted:
        of_script = f" in the script {script}" if script else ""
        raise UserError(f"{', '.join(map(str, corpora))}: no text{of_script} to learn from.")
    words, rules = prepare(tokenizer, counted, min_frequency, max_length)
    lengths = np.fromiter(map(character_counter(tokenizer), counted), dtype=np.int64, count=len(counted))
    metrics["characters"] = int(lengths @ words.counts)
    counted.clear()
    with console.progress("learning", float(number), "pieces") as advance:
        learned = learn(words, rules, number, advance)
    if not learned.pieces:
        raise UserError(
            f"nothing in the corpus occurs {min_frequency} times and is no piece yet; lower --min-frequency."
        )
    if len(learned.pieces) < number:
        console.warn(
            f"the corpus has {len(learned.pieces):,} pieces of frequency {min_frequency} or more, not "
            f"{number:,}."
        )
    write_pieces(path, tokenizer, learned)
    return Outcome(
        outputs={"pieces": len(learned.pieces), "tokenizer": tokenizer.fingerprint},
        metrics={**metrics, "tokens_before": learned.tokens_before, "tokens_after": learned.tokens_after},
    )


def script_pattern(script: str | None) -> Any:
    """The pattern of words in one Unicode script, None for no script."""
    if script is None:
        return None
    try:
        return regex.compile(rf"\p{{Script={script}}}+")
    except regex.error:
        raise UserError(
            f"--script {script}: not a Unicode script; Han, Hangul, Cyrillic and Arabic are some."
        ) from None


def cutter(tokenizer: Tokenizer, wanted: Any) -> Callable[[str], list[str]]:
    """How a text is cut into the words that pieces may not cross, spelled as the vocabulary spells them."""
    backend = tokenizer.backend
    if tokenizer.family == "byte-level-bpe":
        normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer

        def cut_bytes(text: str) -> list[str]:
            text = normalizer.normalize_str(text) if normalizer else text
            parts = wanted.findall(text) if wanted else [text]
            return [word for part in parts for word in cut_part(part)]

        @lru_cache(maxsize=100_000)
        def cut_part(part: str) -> list[str]:
            return [word for word, _ in pre_tokenizer.pre_tokenize_str(part)]

        return cut_bytes
    folding = folding_normalizer(tokenizer)
    prefix = SPACE if tokenizer.pieces()[tokenizer.encode(["a"])[0][0]].startswith(SPACE) else ""

    def cut(text: str) -> list[str]:
        text = folding.normalize_str(text) if folding else text
        words: list[str] = (wanted or WORD).findall(prefix + text.replace(" ", SPACE))
        return words

    return cut


def folding_normalizer(tokenizer: Tokenizer) -> Any:
    """What a sentencepiece tokenizer does to characters (NFKC and the like), but not to spaces."""
    definition = tokenizer.definition.json.get("normalizer") or {}
    steps = definition.get("normalizers", [definition] if definition else [])
    folding = [step for step in steps if step["type"] not in ("Prepend", "Replace", "Strip")]
    if not folding:
        return None
    bare = {**_bare(tokenizer), "normalizer": {"type": "Sequence", "normalizers": folding}}
    return backend_of(bare, tokenizer.directory).normalizer


def count_words(
    texts: Iterable[str], cut: Callable[[str], list[str]], seed: int, limit: int = MAX_WORDS
) -> tuple[Counter[str], dict[str, Any]]:
    """The words of `texts` with their frequencies, in bounded memory.

    When more than `limit` different words are held, each of the rarer half is dropped with probability one
    half and else counted twice: the expected frequency of every pair stays what it is in the whole corpus.
    """
    counted: Counter[str] = Counter()
    chance = random.Random(seed)
    read = characters = thinned = 0
    for text in texts:
        read += 1
        characters += len(text)
        counted.update(cut(text))
        while len(counted) > limit:
            thinned += 1
            rare = sorted(counted.values())[len(counted) // 2]
            for word, count in list(counted.items()):
                if count <= rare:
                    if chance.random() < 0.5:
                        del counted[word]
                    else:
                        counted[word] = 2 * count
    if thinned:
        console.warn(f"more than {limit:,} different words: rare ones were sampled, {thinned} times by half.")
    return counted, {
        "documents": read,
        "characters_read": characters,
        "words": len(counted),
        "thinned": thinned,
    }


def prepare(
    tokenizer: Tokenizer, counted: Counter[str], min_frequency: int, max_length: int
) -> tuple[Words, Rules]:
    """The words as the source's own tokens, and what may become a piece."""
    pieces = tokenizer.pieces()
    bare = _bare(tokenizer)
    first_missing = len(pieces)
    if tokenizer.family != "byte-level-bpe":
        missing = sorted(set("".join(counted)) - set(pieces))
        pieces += missing
        if bare["model"]["type"] == "Unigram":
            # Low enough to be chosen only where nothing else can be.
            bare["model"]["vocab"] = [*bare["model"]["vocab"], *([c, -1000.0] for c in missing)]
            first_missing, pieces = len(pieces) - len(missing), [p for p, _ in bare["model"]["vocab"]]
        else:
            added = {c: first_missing + i for i, c in enumerate(missing)}
            bare["model"]["vocab"] = {**bare["model"]["vocab"], **added}
    ids, offsets = _encode(bare, list(counted), tokenizer.directory)
    fallback = bool(bare["model"].get("byte_fallback"))
    rules = Rules(
        pieces=pieces,
        first_missing=first_missing,
        saved=2 if fallback else 1,
        shared=tokenizer.family != "byte-level-bpe",
        min_frequency=min_frequency,
        allowed=_allowed(tokenizer, max_length),
    )
    return Words(ids, offsets, np.fromiter(counted.values(), dtype=np.int64, count=len(counted))), rules


def _allowed(tokenizer: Tokenizer, max_length: int) -> Callable[[str], bool]:
    length = character_counter(tokenizer)
    return lambda piece: length(piece) <= max_length


def character_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """How many characters of text a string of the vocabulary's spelling stands for."""
    if tokenizer.family != "byte-level-bpe":
        return len
    # Characters are counted by their first bytes: 10xxxxxx goes on with one.
    going_on = dict.fromkeys(
        ord(c) for byte, c in bytelevel.byte_to_character().items() if byte & 0xC0 == 0x80
    )
    return lambda piece: len(piece.translate(going_on))


def _encode(bare: dict[str, Any], words: list[str], name: object) -> tuple[Any, Any]:
    """Flat int32 ids and int64 offsets of `words`, each encoded by itself by the model `bare`.

    Many words are encoded as one, with a character between them that merges with nothing: thrice as fast.
    """
    model = dict(bare["model"])
    if model["type"] == "Unigram":
        separator = len(model["vocab"])
        model["vocab"] = [*model["vocab"], [SEPARATOR, 0.0]]
    else:
        separator = max(model["vocab"].values()) + 1
        model["vocab"] = {**model["vocab"], SEPARATOR: separator}
    backend = backend_of({**bare, "model": model}, name)
    # Where a whole word is looked up before its merges are tried, each has to come by itself.
    together = 1 if model.get("ignore_merges") else WORDS_TOGETHER
    chunks = [SEPARATOR.join([*words[i : i + together], ""]) for i in range(0, len(words), together)]
    ids = [
        np.array(encoding.ids, dtype=np.int32)
        for i in range(0, len(chunks), BATCH)
        for encoding in backend.encode_batch_fast(chunks[i : i + BATCH], add_special_tokens=False)
    ]
    flat = np.concatenate(ids)
    ends = np.flatnonzero(flat == separator)
    offsets = np.concatenate([[0], ends - np.arange(len(ends))])
    return flat[flat != separator], offsets


def bare_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer's model alone: it encodes words that are spelled as pieces."""
    return backend_of(_bare(tokenizer), tokenizer.directory)


def _bare(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's `tokenizer.json` reduced to its model: words spelled as pieces go in, ids come out."""
    empty: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "added_tokens": [],
    }
    return {**tokenizer.definition.json, **empty, "model": dict(tokenizer.definition.json["model"])}


def write_pieces(path: Path, tokenizer: Tokenizer, learned: Learned) -> None:
    """One line a piece: {"piece"} as text (`▁` for a space), or {"bytes"} where its bytes are not text."""
    with path.open("w", encoding="utf-8") as file:
        for piece, frequency in zip(learned.pieces, learned.frequencies, strict=True):
            line: dict[str, Any] = {"piece": piece, "frequency": frequency}
            if tokenizer.family == "byte-level-bpe":
                raw = bytelevel.to_bytes(piece) or b""
                try:
                    line["piece"] = raw.decode("utf-8")
                except UnicodeDecodeError:
                    line = {"bytes": raw.hex(), "frequency": frequency}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
