"""`learn-pieces`: count the words of a corpus, encode them with the source tokenizer, continue its BPE."""

import json
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge import console
from llmforge.corpus import Reader
from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.continued_bpe import TABLE_BITS, Learned, Rules, Words, learn, place
from llmforge.tokenizer.files import tokenizer_files
from llmforge.tokenizer.formats.sentencepiece_model import SPACE
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.loading import Tokenizer, backend_of, bare_json, load
from llmforge.tokenizer.options import LearnPiecesOptions
from llmforge.tokenizer.words import Counted, count_words, cutter

WORDS_TOGETHER, BATCH = 200, 2000


def learn_pieces(options: LearnPiecesOptions) -> Finished:
    """Writes `options.output`, a jsonl of at most `num_pieces` new pieces in the order in which they can be merged.

    `options.data` are files and directories. `seed` matters only for a corpus of more than `words.MAX_WORDS` different
    words, of which the rare ones are sampled.
    """
    corpora = [Path(text) for text in options.data]
    inputs = [*tokenizer_files(options.tokenizer), *corpora]
    step = Step(
        "learn-pieces", options.output, options.arguments(), inputs, options.overwrite, single_file=True
    )
    return run_step(step, lambda path: _learn(path, options, corpora))


def _learn(path: Path, options: LearnPiecesOptions, corpora: Sequence[Path]) -> Outcome:
    script, number = options.script, options.num_pieces
    min_frequency, max_length = options.min_frequency, options.max_piece_length
    tokenizer = load(options.tokenizer, options.tokenizer_scheme)
    inside = Inside(tokenizer)
    cut = cutter(inside, script)
    reader = Reader(corpora, options.reading)
    with console.progress("reading", float(reader.size), "bytes") as advance:
        counted, metrics = count_words(reader.texts(advance), cut, options.seed)
    metrics["ledger"] = reader.account.as_json()
    if not len(counted):
        of_script = f" in the script {script}" if script else ""
        raise UserError(f"{', '.join(map(str, corpora))}: no text{of_script} to learn from.")
    metrics["characters"] = _characters(tokenizer, counted)
    if script is None:  # what is put before a text is no character of it
        metrics["characters"] -= metrics["documents"] * len(inside.prefix)
    words, rules = prepare(inside, counted, min_frequency, max_length)
    del counted
    with console.progress("learning", float(number), "tokens") as advance:
        learned = learn(words, rules, number, advance)
    if not learned.pieces:
        lower = "lower --min-frequency, or " if min_frequency > 1 else ""
        raise UserError(
            f"{', '.join(map(str, corpora))}: no new token occurs {min_frequency:,} times "
            f"or more; {lower}give more text."
        )
    if len(learned.pieces) < number:
        console.warn(
            f"the corpus has only {len(learned.pieces):,} new tokens with a frequency of {min_frequency} or more, not "
            f"{number:,}."
        )
    write_pieces(path, tokenizer, learned)
    return Outcome(
        outputs={"pieces": len(learned.pieces), "tokenizer": tokenizer.fingerprint},
        metrics={
            **metrics,
            "tokens_before": learned.tokens_before,
            "tokens_after": learned.tokens_after,
            "curve": learned.curve,
        },
    )


def prepare(inside: Inside, counted: Counted, min_frequency: int, max_length: int) -> tuple[Words, Rules]:
    """The words as the source's own tokens, and what may become a piece."""
    tokenizer = inside.tokenizer
    pieces = tokenizer.pieces()
    bare = bare_json(tokenizer)
    model = bare["model"]
    unigram = model["type"] == "Unigram"
    known = {piece for piece, _ in model["vocab"]} if unigram else model["vocab"]
    characters = map(chr, np.flatnonzero(np.bincount(counted.codes)).tolist())
    missing = [character for character in characters if character not in known]
    if unigram:
        pieces = [piece for piece, _ in model["vocab"]]
        # Low enough to be chosen only where nothing else can be.
        model["vocab"] = [*model["vocab"], *([character, -1000.0] for character in missing)]
    else:
        model["vocab"] = {**model["vocab"], **{c: len(pieces) + i for i, c in enumerate(missing)}}
    takes = np.array([_tokens_of(character, inside, known) for character in missing], dtype=np.int64)
    # One that cannot be a piece is worth nothing; a source without bytes gains the character itself.
    offered = np.array([not inside.byte_level and inside.stands(c) for c in missing], dtype=bool)
    rules = Rules(
        pieces=[*pieces, *missing],
        first_missing=len(pieces),
        takes=takes,
        worth=np.where(offered, np.maximum(takes - 1, 0 if model.get("byte_fallback") else 1), 0),
        shared=tokenizer.family == "sentencepiece-bpe" and tokenizer.definition.model is not None,
        min_frequency=min_frequency,
        allowed=_allowed(inside, max_length),
    )
    return _encode(bare, counted, tokenizer.directory), rules


def _tokens_of(character: str, inside: Inside, known: Collection[str]) -> int:
    """How many tokens the source makes of a character that it lacks: its bytes, or one that says "unknown", or none."""
    model = inside.tokenizer.definition.json["model"]
    spelled = [f"<0x{byte:02X}>" for byte in character.encode()]
    if model.get("byte_fallback") and all(byte in known for byte in spelled):
        return len(spelled)
    return 0 if inside.byte_level and model.get("unk_token") is None else 1


def _allowed(inside: Inside, max_length: int) -> Callable[[str], bool]:
    going_on = dict.fromkeys(_going_on()) if inside.byte_level else {}
    return lambda piece: len(piece.translate(going_on)) <= max_length and inside.stands(piece)


def _characters(tokenizer: Tokenizer, counted: Counted) -> int:
    """How many characters of text the words stand for, each as often as it occurs."""
    total = int(counted.lengths @ counted.counts)
    if tokenizer.family == "byte-level-bpe":
        times = np.repeat(counted.counts, counted.lengths)
        total -= int(times[np.isin(counted.codes, _going_on())].sum())
    return total


def _going_on() -> list[int]:
    """The code points of byte-level pieces that continue with a character: bytes of the form 10xxxxxx."""
    return [ord(c) for byte, c in bytelevel.byte_to_character().items() if byte & 0xC0 == 0x80]


def _encode(bare: dict[str, Any], counted: Counted, name: object) -> Words:
    """The words, each encoded by itself by the model `bare`, in no particular order.

    A word of which no two neighbors merge is its characters. Of the others, many are encoded as one, with a
    character between them that merges with nothing: thrice as fast.
    """
    model = dict(bare["model"])
    characters, whole = _characters_that_stay(model, counted)
    plain, rest = counted.taken(np.flatnonzero(whole)), counted.taken(np.flatnonzero(~whole))
    between = next(c for c in range(0x10FFFF, 0, -1) if not (rest.codes == c).any())
    if model["type"] == "Unigram":
        separator = len(model["vocab"])
        model["vocab"] = [*model["vocab"], [chr(between), 0.0]]
    else:
        separator = max(model["vocab"].values()) + 1
        model["vocab"] = {**model["vocab"], chr(between): separator}
    backend = backend_of({**bare, "model": model}, name)
    # Where a whole word is looked up before its merges are tried, each has to come by itself.
    together = 1 if model.get("ignore_merges") else WORDS_TOGETHER
    ends = rest.offsets()[1:]
    text = np.insert(rest.codes, ends, between).tobytes().decode("utf-32-le")
    cuts = [0, *(ends + np.arange(1, len(ends) + 1))[together - 1 : -1 : together].tolist(), len(text)]
    chunks = [text[a:b] for a, b in pairwise(cuts)]
    ids = [
        np.array(encoding.ids, dtype=np.int32)
        for i in range(0, len(chunks), BATCH)
        for encoding in backend.encode_batch_fast(chunks[i : i + BATCH], add_special_tokens=False)
    ]
    flat = np.concatenate([characters[plain.codes], *ids])
    ends = np.flatnonzero(flat == separator)
    behind = ends - np.arange(len(ends))
    offsets = np.concatenate([plain.offsets(), behind])
    return Words(flat[flat != separator], offsets, np.concatenate([plain.counts, rest.counts]))


def _characters_that_stay(
    model: dict[str, Any], counted: Counted
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The ids of characters by code point (int32, -1 for none), and the words that BPE leaves as characters (bool)."""
    characters = np.full(0x110000, -1, dtype=np.int32)
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return characters, np.zeros(len(counted), dtype=bool)
    vocabulary = model["vocab"]
    alone = [piece for piece in vocabulary if len(piece) == 1]
    characters[[ord(piece) for piece in alone]] = [vocabulary[piece] for piece in alone]
    merges = [[ord(a), ord(b)] for a, b in model["merges"] if len(a) == len(b) == 1]
    left, right = characters[np.array(merges, dtype=np.int64).reshape(-1, 2)].T
    merging = np.zeros(1 << TABLE_BITS, dtype=bool)  # two pairs in one place only cost time
    merging[place(left, right)] = True
    ids = characters[counted.codes]
    changing = ids < 0
    changing[:-1] |= merging[place(ids[:-1], ids[1:])]
    starts = counted.offsets()[:-1]
    return characters, ~np.logical_or.reduceat(changing, starts)


def write_pieces(path: Path, tokenizer: Tokenizer, learned: Learned) -> None:
    """One line a piece: {"piece"} as text (`▁` for a space), or {"bytes"} where its bytes are not text or have a `▁`."""
    with path.open("w", encoding="utf-8") as file:
        for piece, frequency in zip(learned.pieces, learned.frequencies, strict=True):
            line: dict[str, Any] = {"piece": piece, "frequency": frequency}
            if tokenizer.family == "byte-level-bpe":
                raw = bytelevel.to_bytes(piece) or b""
                try:
                    line["piece"] = raw.decode("utf-8")
                except UnicodeDecodeError:
                    line["piece"] = SPACE
                if SPACE in line["piece"]:
                    line = {"bytes": raw.hex(), "frequency": frequency}
            # What cannot be seen is escaped: some readers take U+0085 or U+2028 for the end of a line.
            text = json.dumps(line, ensure_ascii=False)
            file.write("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text) + "\n")
