"""Rank files of every scheme and `tekken.json` of every form: they grow, and transformers 4 and 5 read what comes of it."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmforge.tokenizer import bytelevel, load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.formats import schemes
from llmforge.tokenizer.formats.schemes import SCHEMES, Scheme
from llmforge.tokenizer.options import InitTokenizerOptions
from llmforge.tokenizer.verify import SAMPLE

from . import makers
from .test_transformers import ask_transformers, ids_of, python  # noqa: F401 - a fixture

PIECES = ["今天天气", "历史", "我们的国家", "，我", "东京,", "ですます", " gardening"]
TEXTS = [
    *SAMPLE,
    *makers.ENGLISH[:6],
    *makers.CHINESE[:5],
    "我们的国家，我今天天气很好。\n",
    "don't DON'T iPhone 12345",
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Some 400 ranks: the bytes, and tokens that another tokenizer learned, in its order."""
    source = load(
        makers.byte_level(tmp_path_factory.mktemp("ranks"), [*makers.ENGLISH, *makers.CHINESE], 400)
    )
    learned = [raw for raw in source.token_bytes() if len(raw) > 1]
    return [*(bytes([byte]) for byte in range(256)), *learned]


def small(scheme: Scheme, size: int) -> Scheme:
    """`scheme` for `size` ranks: its special tokens right behind them, in their order."""
    names = sorted(scheme.special, key=lambda name: scheme.special[name])
    return replace(scheme, ranks=size, special={name: size + i for i, name in enumerate(names)})


def rank_file(directory: Path, ranks: list[bytes]) -> Path:
    directory.mkdir()
    lines = [base64.b64encode(raw) + b" %d\n" % i for i, raw in enumerate(ranks)]
    (directory / "tokenizer.model").write_bytes(b"".join(lines))
    return directory


def tekken(directory: Path, ranks: list[bytes], year: str) -> Path:
    """`tekken.json` as of 2407 (its special tokens have no names), 2409 (they have) and 2503 (with a place to be filled)."""
    directory.mkdir()
    control, kept = 30, len(ranks)
    entries = [
        {"rank": i, "token_bytes": base64.b64encode(raw).decode(), "token_str": None}
        for i, raw in enumerate(ranks)
    ]
    more = [{**entries[-1], "rank": kept, "token_bytes": base64.b64encode(b"more than is used").decode()}]
    value = {
        "config": {
            "pattern": schemes.O200K,
            "num_vocab_tokens": kept + 1,
            "default_vocab_size": control + kept,
            "default_num_special_tokens": control,
            "version": {"2407": "v3", "2409": "v7", "2503": "v11"}[year],
        },
        "vocab": [*entries, *more],
    }
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    if year != "2407":
        value["special_tokens"] = [
            {"rank": i, "token_str": n, "is_control": True} for i, n in enumerate(names)
        ]
    if year == "2503":
        value["special_tokens"] += [{"rank": 11, "token_str": "<pad>", "is_control": True}]
        value |= {"type": "Tekken", "multimodal": {"image_patch_size": 14, "max_image_size": 1540}}
    (directory / "tekken.json").write_text(json.dumps(value))
    return directory


@pytest.fixture(scope="module")
def grown(ranks: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By name, a source of each kind and what init-tokenizer made of it, with all checks."""
    work = tmp_path_factory.mktemp("grown")
    pieces = work / "pieces.jsonl"
    pieces.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in PIECES))
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, scheme in SCHEMES.items():
            patch.setitem(SCHEMES, name, small(scheme, len(ranks)))
        for name in SCHEMES:
            source = rank_file(work / name, ranks)
            (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_scheme": name}))
            made[name] = (
                source,
                init_tokenizer(
                    InitTokenizerOptions(tokenizer=source, output=work / f"{name}-grown", pieces=pieces)
                ).output,
            )
        for year in ("2407", "2409", "2503"):
            source = tekken(work / f"tekken-{year}", ranks, year)
            made[source.name] = (
                source,
                init_tokenizer(
                    InitTokenizerOptions(
                        tokenizer=source, output=work / f"{source.name}-grown", pieces=pieces
                    )
                ).output,
            )
    return made


@pytest.mark.parametrize("name", [*SCHEMES, "tekken-2407", "tekken-2409", "tekken-2503"])
def test_every_kind_of_ranks_grows(
    name: str, grown: dict[str, tuple[Path, Path]], ranks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = grown[name]
    if name in SCHEMES:
        monkeypatch.setitem(SCHEMES, name, small(SCHEMES[name], len(ranks)))
    before, after = load(source), load(target)
    assert after.pieces()[: before.size] == before.pieces()
    assert after.prefix_ids == before.prefix_ids
    assert (after.eos_id, after.special_ids) == (before.eos_id, before.special_ids)
    gates = json.loads((target / "llmforge.json").read_text())["metrics"]["gates"]["reachability"]
    # What the pattern cuts: a mark behind letters always, one before them for GPT-2's, and before Han for Kimi's.
    cut = {"东京,"} | ({"，我"} if name in ("r50k_base", "p50k_base", "kimi") else set())
    assert {bytelevel.to_bytes(piece) for piece in gates["reasons"]} == {piece.encode() for piece in cut}
    for text in ("历史", "今天天气", "我们的国家", " gardening"):
        assert len(after.encode([text])[0]) == 1
    for text in TEXTS:
        assert after.decode(after.encode([text])[0].tolist()) == before.decode(
            before.encode([text])[0].tolist()
        )


@pytest.mark.slow
def test_transformers_reads_every_kind_that_grew(
    python: str,  # noqa: F811
    grown: dict[str, tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    directories = [target for _, target in grown.values()]
    for target, answer in zip(
        directories, ask_transformers(python, directories, TEXTS, tmp_path), strict=True
    ):
        ours = load(target)
        assert answer["ids"] == ids_of(ours, TEXTS), target.name
        assert answer["size"] == ours.size
