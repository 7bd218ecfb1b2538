"""The checks of `init-tokenizer`, made on every expanded tokenizer.

    reachability   every new piece encodes to its own id, or is listed with the reason; no old piece is lost
    parity         sentencepiece gives the ids of tokenizer.json, on every document
    round trip     decode(encode(text)) == text, on every document for which it holds with the source
    drift          documents of the source's own language whose tokens changed, and documents of any language
                   that changed although none of their tokens is new

Parity, round trip and drift without new pieces must hold: where they do not, nothing is published. Of a unigram
source the last is only counted: segmentations of equal score may change, and what an unknown character costs depends
on the lowest score.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmforge import console
from llmforge.corpus import Reader, ReadOptions, find_chunks
from llmforge.errors import UserError
from llmforge.tokenizer.formats.sentencepiece_model import NORMAL
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.loading import Tokenizer

SAMPLE_CHARACTERS = 1_000_000
DOCUMENT_CHARACTERS = 20_000
EXAMPLES = 5
OTHER_LANGUAGE = (
    0.05  # a document with more than this share of the new pieces' letters is not in the source's language
)
SAMPLE = (
    "The quick brown fox jumps over the lazy dog, twice: at 7:45 and at 19:30.",
    "def area(r):\n    return 3.14159 * r ** 2  # m²\n\n\nprint(area(2))\n",
    "Ça coûte 12,50 € à l'hôtel; Straßenbahn, naïve, mañana, İstanbul, Łódź.",
    "Съешь же ещё этих мягких французских булок да выпей чаю.",
    "الجو جميل اليوم، أليس كذلك؟",
    "今天天气很好,我们一起去公园散步吧!「真的吗?」他问道……",
    "昨日は東京で雨が降りました。カタカナとひらがな。",
    "오늘은 날씨가 좋습니다. 산책하러 갑시다.",
    "आज मौसम अच्छा है।",
    "วันนี้อากาศดี",
    "🙂👩‍👩‍👧‍👦🇨🇳 e\u0301 \u200b \ufeff ﬁ ① Ⅳ ㎏ \U0001f9ff",
    "  two  spaces   and\ttabs\t\tand\r\nline ends \n\n ",
    "<s> </s> <unk> <0x0A> <|endoftext|> [INST] ▁ Ġ are text here.",
    "哈哈哈哈哈哈哈 aaaaaaaaaaaa ........ ======== \n\n\n\n",
)


def verify(
    before: Tokenizer,
    after: Tokenizer,
    wanted: Sequence[str],
    left_out: Mapping[str, str],
    corpora: Sequence[Path],
    reading: ReadOptions | None = None,
) -> dict[str, Any]:
    """The figures of all checks; a `UserError` where one that must hold does not."""
    documents = sample(before, after, wanted, corpora, reading)
    ids, offsets = after.encode(documents)
    old_ids, old_offsets = before.encode(documents)
    rows = [ids[a:b] for a, b in pairwise(offsets.tolist())]
    old_rows = [old_ids[a:b] for a, b in pairwise(old_offsets.tolist())]
    figures = {
        "documents": len(documents),
        "characters": sum(map(len, documents)),
        "reachability": reachability(before, after, wanted, left_out),
        "parity": parity(before, after, documents, rows),
        "round_trip": round_trip(before, after, documents, rows, old_rows),
        "drift": drift(before, after, wanted, documents, rows, old_rows),
    }
    _insist(figures)
    return figures


def sample(
    before: Tokenizer,
    after: Tokenizer,
    wanted: Sequence[str],
    corpora: Sequence[Path],
    reading: ReadOptions | None = None,
) -> list[str]:
    """The texts of the checks: the built-in ones, and the corpora's or else the pieces themselves."""
    documents = list(SAMPLE)
    if not corpora:
        new = after.pieces()[before.size :]
        spelled = dict(zip(new, after.token_bytes(before.size), strict=True))
        texts = [spelled[piece].decode("utf-8", "ignore") for piece in wanted if piece in spelled]
        joined = ["".join(texts[i : i + 50]) for i in range(0, len(texts), 50)]
        return documents + joined + [" ".join(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    reading = reading or ReadOptions()
    files = list(dict.fromkeys(chunk.path for chunk in find_chunks(corpora, reading.lines)))
    for file in files:
        left = SAMPLE_CHARACTERS / len(files)
        reader = Reader([Path(file)], reading)
        for document in reader.documents():
            documents.append(document.text[:DOCUMENT_CHARACTERS])
            left -= len(documents[-1])
            if left <= 0:
                reader.finish()
                break
    return documents


def reachability(
    before: Tokenizer, after: Tokenizer, wanted: Sequence[str], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """New and old pieces that do not encode to themselves."""
    pieces = after.pieces()
    new = [(piece, i) for i, piece in enumerate(pieces) if i >= before.size and piece]
    added = {token["id"] for token in before.definition.json["added_tokens"]}
    old = [(p, i) for i, p in enumerate(before.pieces()) if p and i not in added and _is_normal(before, i)]
    names = [piece for piece, _ in old]
    old_before = _alone(before, names)
    found = _alone(after, names + [piece for piece, _ in new])
    old_after = found[: len(names)]
    unreachable = dict(left_out)
    for (piece, i), got in zip(new, found[len(names) :], strict=True):
        if got != [i]:
            unreachable[piece] = f"it is encoded as {' + '.join(pieces[part] for part in got)}"
    lost = [
        piece for (piece, i), a, b in zip(old, old_before, old_after, strict=True) if a == [i] and b != [i]
    ]
    return {
        "new": len(new),
        "unreachable": len(unreachable),
        "reasons": dict(list(unreachable.items())[:1000]),
        "source_unreachable": sum(a != [i] for (_, i), a in zip(old, old_before, strict=True)),
        "source_lost": len(lost),
        "source_lost_examples": lost[:EXAMPLES],
    }


def parity(
    before: Tokenizer, after: Tokenizer, documents: Sequence[str], rows: Sequence[np.ndarray]
) -> dict[str, Any] | None:
    """Documents that sentencepiece encodes to other ids than tokenizer.json; None without sentencepiece."""
    if after.definition.model is None:
        return None
    theirs = sentencepiece_ids(after, documents)
    differs = [i for i, (a, b) in enumerate(zip(rows, theirs, strict=True)) if a.tolist() != b]
    tied = {i for i in differs if _tied(after, rows[i].tolist(), theirs[i])}
    texts = [documents[i] for i in differs if i not in tied]
    inherited = _source_differs(before, texts)
    broken = [text for text, known in zip(texts, inherited, strict=True) if not known]
    return {
        "documents": len(documents),
        "mismatches": len(broken),
        "inherited": sum(inherited),
        "ties": len(tied),
        "examples": [text[:200] for text in broken[:EXAMPLES]],
    }


def round_trip(
    before: Tokenizer,
    after: Tokenizer,
    documents: Sequence[str],
    rows: Sequence[np.ndarray],
    old_rows: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Documents that do not come back; those that the source's normalizer changes do not count."""
    back = after.backend.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
    lost = [i for i, (text, got) in enumerate(zip(documents, back, strict=True)) if text != got]
    broken = [i for i in lost if before.decode(old_rows[i].tolist()) == documents[i]]
    return {
        "documents": len(documents),
        "failures": len(broken),
        "inherited": len(lost) - len(broken),
        "examples": [documents[i][:200] for i in broken[:EXAMPLES]],
    }


def drift(
    before: Tokenizer,
    after: Tokenizer,
    wanted: Sequence[str],
    documents: Sequence[str],
    rows: Sequence[np.ndarray],
    old_rows: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Documents in the source's language whose tokens changed, and any that changed with no new piece."""
    new_text = "".join(raw.decode("utf-8", "ignore") for raw in after.token_bytes(before.size))
    letters = {c for c in new_text if _is_letter(c)}
    own = [_share(text, letters) <= OTHER_LANGUAGE for text in documents]
    changed = [not np.array_equal(new, old) for new, old in zip(rows, old_rows, strict=True)]
    without = [c and not (row >= before.size).any() for c, row in zip(changed, rows, strict=True)]
    pieces = after.pieces()
    examples = []
    for i in [i for i in range(len(documents)) if own[i] and changed[i]][:EXAMPLES]:
        used = sorted({int(t) for t in rows[i] if t >= before.size})
        examples.append({"text": documents[i][:200], "new_pieces": [pieces[t] for t in used[:10]]})
    unigram = before.family == "sentencepiece-unigram"
    return {
        "documents": sum(own),
        "changed": sum(c and o for c, o in zip(changed, own, strict=True)),
        "changed_without_new_pieces": sum(without),
        # Why such a change is no fault here; None: it is one, and stops the step.
        "not_enforced": "unigram segmentations of equal score may change" if unigram else None,
        "examples": examples,
        "examples_without_new_pieces": [documents[i][:200] for i, w in enumerate(without) if w][:EXAMPLES],
    }


def sentencepiece_ids(tokenizer: Tokenizer, documents: Sequence[str]) -> list[list[int]]:
    """The ids that sentencepiece itself makes of `documents` with the tokenizer's protobuf."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(
            model_proto=tokenizer.definition.model.SerializeToString()
        )
    except RuntimeError as error:
        raise UserError(
            f"{tokenizer.directory}: sentencepiece cannot read tokenizer.model ({error}); download the file again."
        ) from error
    result: list[list[int]] = processor.encode(list(documents), out_type=int)
    return result


def summary(figures: Mapping[str, Any]) -> str:
    """The checks in a few lines, for the terminal."""
    reach, parity_, trip, moved = (
        figures[name] for name in ("reachability", "parity", "round_trip", "drift")
    )
    lines = [
        f"checks on {figures['documents']:,} documents, {figures['characters']:,} characters:",
        f"  reachability  {reach['new'] - reach['unreachable']:,} of {reach['new']:,} new tokens; "
        f"{reach['source_lost']:,} old tokens lost ({reach['source_unreachable']:,} were unreachable before)",
        f"  round trip    {trip['failures']:,} failures ({trip['inherited']:,} in the source as well)",
        f"  drift         {moved['changed']:,} of {moved['documents']:,} documents in the source's language have other ids; "
        f"{moved['changed_without_new_pieces']:,} of all documents without a new token",
    ]
    if parity_ is not None:
        line = f"  parity        {parity_['mismatches']:,} mismatches with sentencepiece"
        ties = f"; {parity_['ties']:,} of equal score" if parity_["ties"] else ""
        lines.insert(2, f"{line} ({parity_['inherited']:,} in the source as well{ties})")
    for piece, reason in list(reach["reasons"].items())[:EXAMPLES]:
        lines.append(f"  unreachable: {piece}: {reason}")
    return "\n".join(lines)


def _insist(figures: Mapping[str, Any]) -> None:
    checks = (
        ("parity", "mismatches", "documents get other ids from sentencepiece than from tokenizer.json"),
        ("round_trip", "failures", "documents are not restored by decoding their ids"),
    )
    for name, figure, what in checks:
        if figures[name] is not None and figures[name][figure]:
            example = figures[name]["examples"][0]
            raise UserError(
                f"the {name.replace('_', ' ')} check failed: {figures[name][figure]} {what}, for example "
                f"{example!r}; "
                "nothing was written. Please report it with the file of --pieces."
            )
    drift_ = figures["drift"]
    if drift_["changed_without_new_pieces"] and not drift_["not_enforced"]:
        raise UserError(
            f"the drift check failed: the tokens of {drift_['changed_without_new_pieces']} documents changed without "
            f"a new piece, for example {drift_['examples_without_new_pieces'][0]!r}; nothing was written. Please "
            "report it with the file of --pieces."
        )
    lost = figures["reachability"]["source_lost"]
    if lost:
        console.warn(
            f"{lost} tokens of the source are no longer reachable; llmforge.json lists some of them."
        )


def _alone(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[list[int]]:
    """The ids of each piece by itself, inside a text."""
    return Inside(tokenizer).encode(pieces)


def _is_normal(tokenizer: Tokenizer, i: int) -> bool:
    model = tokenizer.definition.model
    if model is not None and i < len(model.pieces):
        return bool(model.pieces[i].type == NORMAL)
    return True


def _source_differs(before: Tokenizer, texts: Sequence[str]) -> list[bool]:
    if not texts or before.definition.model is None:
        return [False] * len(texts)
    ids, offsets = before.encode(texts)
    theirs = sentencepiece_ids(before, texts)
    return [ids[offsets[i] : offsets[i + 1]].tolist() != theirs[i] for i in range(len(texts))]


def _tied(tokenizer: Tokenizer, ours: list[int], theirs: list[int]) -> bool:
    """Whether two unigram segmentations score alike as far as sentencepiece's float32 sums can tell."""
    if tokenizer.family != "sentencepiece-unigram":
        return False
    pieces = tokenizer.definition.model.pieces
    scores = [sum(pieces[i].score for i in ids) for ids in (ours, theirs)]
    return math.isclose(*scores, rel_tol=1e-5)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _share(text: str, letters: set[str]) -> float:
    found = [c for c in text[:DOCUMENT_CHARACTERS] if _is_letter(c)]
    return sum(c in letters for c in found) / len(found) if found else 0.0
