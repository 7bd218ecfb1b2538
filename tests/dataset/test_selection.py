"""Mixtures, duplicates and quality: what is left out is left out whole, and counted with its reason."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.dataset.dedup import Signatures, near_duplicates
from llmforge.dataset.quality import Judge, QualitySettings
from llmforge.errors import UserError

from .conftest import write_jsonl
from .test_prepare import corpus, documents

Prepare = Callable[..., Any]
ESSAY = (
    "The committee that met in the old library wrote to the governor about the bridge, and the governor, who had "
    "never crossed it, answered with a letter of nine pages. He would have the timber replaced before winter and the "
    "toll removed for carts that carry milk. Nobody believed him until the carpenters came up the river with their "
    "tools, their tents and a cook, and began to saw on the first morning of September while children watched."
)
CHINESE_ESSAY = (
    "委员会在旧图书馆里开会,写信给州长谈桥的事。州长从来没有走过那座桥,却用九页纸回了信。他答应在冬天以前换掉木料,"
    "并且让运牛奶的车不再交钱。没有人相信他,直到木匠们带着工具、帐篷和一个厨师沿河而上,在九月的第一个早晨开始锯木头。"
)


def reasons(finished: Any) -> dict[str, int]:
    found = finished.manifest.metrics["ledger"]["rejected"]["reasons"]
    return {reason: count["documents"] for reason, count in found.items()}


def tokens_by_category(finished: Any) -> dict[str, int]:
    ledger = finished.manifest.metrics["ledger"]["categories"]
    return {name: counts["written"]["tokens"] for name, counts in ledger.items()}


def test_a_mixture_has_its_shares_and_repeats_nothing(
    prepare: Prepare, tmp_path: Path, byte_level: Path
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus(600))
    everything = tokens_by_category(prepare(tmp_path / "in", name="all"))
    finished = prepare(tmp_path / "in", mix={"a": 3, "b": 1}, max_length=512)
    got = tokens_by_category(finished)
    assert got["a"] / (got["a"] + got["b"]) == pytest.approx(0.75, abs=0.01)
    assert got["a"] == everything["a"]  # the scarce one limits the mixture, and is used up
    assert max(documents(finished.output, byte_level).values()) == 1
    limited = prepare(tmp_path / "in", name="less", mix={"a": 3, "b": 1}, max_tokens=4000)
    assert sum(tokens_by_category(limited).values()) == pytest.approx(4000, rel=0.05)
    assert tokens_by_category(limited)["a"] == pytest.approx(3000, rel=0.05)
    plain = prepare(tmp_path / "in", name="plain", max_tokens=4000)
    assert sum(tokens_by_category(plain).values()) == pytest.approx(4000, rel=0.05)
    ledger = plain.manifest.metrics["ledger"]
    assert (
        ledger["read"]["tokens"]
        == sum(everything.values())
        == ledger["written"]["tokens"] + ledger["rejected"]["tokens"]
    )
    assert (plain.output / "rejected.jsonl").read_text() == ""


def test_a_mixture_must_name_the_categories_there_are(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus(30))
    with pytest.raises(UserError, match="--mix names zh, but the categories are a, b"):
        prepare(tmp_path / "in", mix={"a": 1, "zh": 1})
    with pytest.raises(UserError, match="has no weight for b; add b=0"):
        prepare(tmp_path / "in", mix={"a": 1})
    got = tokens_by_category(prepare(tmp_path / "in", mix={"a": 1, "b": 0}))
    assert got["a"] > 0 == got["b"]


def test_exact_duplicates_leave_the_first(prepare: Prepare, tmp_path: Path, byte_level: Path) -> None:
    records = corpus(40)
    write_jsonl(tmp_path / "in/x.jsonl", [*records, *records[:15]])
    finished = prepare(tmp_path / "in", dedup="exact", max_length=512)
    assert reasons(finished) == {"duplicate": 15}
    assert documents(finished.output, byte_level) == Counter(record["target"] for record in records)
    lines = [
        json.loads(line)["line"] for line in (finished.output / "rejected.jsonl").read_text().splitlines()
    ]
    assert lines == list(range(41, 56))


def test_near_duplicates_are_found_and_others_left_alone(prepare: Prepare, tmp_path: Path) -> None:
    changed = ESSAY.replace("nine pages", "ten pages")
    records = [ESSAY, changed, ESSAY[::-1], CHINESE_ESSAY, CHINESE_ESSAY + "孩子们看着。", ESSAY]
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": text * 3} for text in records])
    finished = prepare(tmp_path / "in", dedup="near")
    assert reasons(finished) == {"duplicate": 1, "near duplicate": 2}
    entries = [json.loads(line) for line in (finished.output / "rejected.jsonl").read_text().splitlines()]
    assert sorted((entry["line"], entry["reason"]) for entry in entries) == [
        (2, "near duplicate"), (5, "near duplicate"), (6, "duplicate"),
    ]  # fmt: skip


def test_near_duplicates_need_agreement_beyond_one_band(tmp_path: Path) -> None:
    """Two documents that share a band by chance, or little else, are both kept."""
    table = np.random.default_rng(0).integers(0, 2**32, (3, 128), dtype=np.uint64).astype("<u4")
    table[1, :8] = table[0, :8]
    table[2, :120] = table[0, :120]
    table.tofile(tmp_path / "minhash")
    found = near_duplicates(Signatures([tmp_path / "minhash"], [3]), np.arange(3), np.ones(3, np.bool_))
    assert found.tolist() == [False, False, True]


GOPHER = {
    "too short": "under 50 or over 100,000 words",
    "42 17 " * 60: "under 80% of words have a letter",
    ESSAY + " #" * 50: "too many # or …",
    "\n".join("- " + ESSAY[i : i + 40] for i in range(0, 360, 40)): "over 90% of lines begin with a bullet",
    "\n".join(ESSAY[i : i + 40] + "..." for i in range(0, 80, 40)) + ESSAY: "over 30% of lines end with …",
    "it is so as we go on by us or at me if he do ox an am no up my "
    * 4: "mean word length under 3 or over 10",
    "Großmutter backt morgens frische Brezeln während draußen " * 10: "under two stop words",
    "\n".join(
        [ESSAY, "the same line of text and more", *["the same line of text and more"] * 4]
    ): "over 30% of lines",
    ESSAY + " hammer saw" * 60: "one 2-gram is over 20% of it",
}


@pytest.mark.parametrize("text", GOPHER)
def test_gopher_rules(text: str) -> None:
    judge = Judge(QualitySettings(gopher=True))
    assert judge.reason(ESSAY) is None
    assert judge.reason(CHINESE_ESSAY) is None
    reason = judge.reason(text)
    assert reason is not None
    assert reason.startswith(f"gopher: {GOPHER[text]}")


def test_repeated_ngrams(tmp_path: Path) -> None:
    phrase = "seven gray horses crossed that muddy northern field before breakfast "
    reason = Judge(QualitySettings(gopher=True)).reason(
        ESSAY + f" {phrase}, and {ESSAY[:40]} {phrase} to be {phrase}"
    )
    assert reason is not None
    assert "-grams are over" in reason


def test_quality_steps_are_counted_and_off_by_default(prepare: Prepare, tmp_path: Path) -> None:
    leaked = "What is the name of the river that flows through the middle of the old town in the north?"
    texts = [
        ESSAY,
        "short",
        f"{ESSAY} {leaked.upper()} {ESSAY[::-1]}",
        f"{ESSAY[10:]} casino-777 ",
        CHINESE_ESSAY,
    ]
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": text} for text in texts])
    (tmp_path / "block.txt").write_text("# sites\ncasino-\\d+\n")
    write_jsonl(tmp_path / "eval.jsonl", [{"question": leaked, "choices": ["Aa", "Bb"]}])
    assert reasons(prepare(tmp_path / "in", name="plain")) == {}
    finished = prepare(
        tmp_path / "in",
        quality="gopher",
        blocklist=tmp_path / "block.txt",
        decontaminate=[tmp_path / "eval.jsonl"],
    )
    assert reasons(finished) == {
        "blocklist": 1,
        "gopher: under 50 or over 100,000 words": 1,
        "contains evaluation text": 1,
    }
    entries = [json.loads(line) for line in (finished.output / "rejected.jsonl").read_text().splitlines()]
    assert sorted(entry["line"] for entry in entries) == [2, 3, 4]
    (tmp_path / "block.txt").write_text("(")
    with pytest.raises(UserError, match=r"block\.txt, line 1: not a regular expression"):
        prepare(tmp_path / "in", blocklist=tmp_path / "block.txt", overwrite=True)
    with pytest.raises(UserError, match="no text of 13 words"):
        prepare(
            tmp_path / "in", decontaminate=[write_jsonl(tmp_path / "e.jsonl", [{"a": "b"}])], overwrite=True
        )
