"""`init-tokenizer`: what is added, what stays, and what is written."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece

from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.loading import from_definition
from llmforge.tokenizer.options import InitTokenizerOptions
from llmforge.tokenizer.verify import verify

from . import makers

TEXTS = [*makers.ENGLISH[:6], *makers.CHINESE[:5], "", "我们的国家 has  <s> two"]


def write_pieces(path: Path, pieces: list[str]) -> Path:
    path.write_text("".join(json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in pieces))
    return path


def test_old_ids_stay_and_new_ones_follow(sentencepiece_bpe: Path, byte_level: Path, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "p.jsonl", ["我们", "国家", "天气很好", "公园"])
    for source in (sentencepiece_bpe, byte_level):
        before = load(source)
        finished = init_tokenizer(
            InitTokenizerOptions(tokenizer=source, output=tmp_path / source.name, pieces=pieces)
        )
        after = load(tmp_path / source.name)
        assert after.pieces()[: before.size] == before.pieces()
        assert finished.manifest.outputs["source_size"] == before.size
        assert finished.manifest.outputs["size"] == after.size > before.size
        assert (after.bos_id, after.eos_id) == (before.bos_id, before.eos_id)
        assert after.special_ids == before.special_ids
        for text in ("我们", "国家", "天气很好", "公园"):
            ids = after.encode([f"x{text}"])[0].tolist()
            assert after.token_bytes()[ids[-1]].decode() == text
            assert ids[-1] >= before.size
        gates = finished.manifest.metrics["gates"]
        assert gates["reachability"]["unreachable"] == gates["reachability"]["source_lost"] == 0
        assert gates["round_trip"]["failures"] == gates["drift"]["changed"] == 0


def test_sentencepiece_reads_the_written_model_alike(sentencepiece_bpe: Path, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "p.jsonl", ["我们", "我们的", "们的国家", "▁the▁old", "the cat"])
    init_tokenizer(InitTokenizerOptions(tokenizer=sentencepiece_bpe, output=tmp_path / "out", pieces=pieces))
    after = load(tmp_path / "out")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    ids, offsets = after.encode(TEXTS)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == processor.encode(TEXTS)
    scores = [processor.get_score(i) for i in range(load(sentencepiece_bpe).size - 1, after.size)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


def test_without_closure_every_piece_is_added_and_no_other(byte_level: Path, tmp_path: Path) -> None:
    # "inat" is of two pieces, "thcat" of more; "国家" has to be made of bytes; "我们的" comes before its part "我们".
    given = ["thcat", "我们的", "国家", "inat", "我们", "我", "们", "的"]
    pieces = write_pieces(tmp_path / "p.jsonl", given)
    assert load(byte_level).encode(["inat"])[0].size == 2
    finished = init_tokenizer(
        InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "without", pieces=pieces, closure=False)
    )
    before, after = load(byte_level), load(finished.output)
    assert [raw.decode() for raw in after.token_bytes()[before.size :]] == given
    assert finished.manifest.metrics["pieces"] == {
        "read": 8,
        "duplicates": 0,
        "already_present": 0,
        "folded": 0,
        "parts_of_characters": 0,
        "control_characters": 0,
        "added": 8,
        "special": 0,
        "closure": 0,
    }
    reached = finished.manifest.metrics["gates"]["reachability"]
    made = [after.encode([text])[0].tolist() == [before.size + i] for i, text in enumerate(given)]
    assert made[given.index("inat")]
    assert (reached["new"], reached["unreachable"]) == (8, made.count(False))
    finished = init_tokenizer(
        InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "with", pieces=pieces)
    )
    assert finished.manifest.metrics["pieces"]["closure"] > 0
    assert finished.manifest.metrics["gates"]["reachability"]["unreachable"] == 0


def test_without_closure_a_model_is_added_as_chinese_llama_did_it(
    sentencepiece_bpe: Path, sentencepiece_unigram: Path, tmp_path: Path
) -> None:
    for kind, options in (("bpe", {"byte_fallback": False}), ("unigram", {"byte_fallback": True})):
        other = makers.sentencepiece_model(tmp_path / kind, kind, makers.CHINESE, vocab_size=400, **options)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(other / "tokenizer.model"))
        for source in (sentencepiece_bpe, sentencepiece_unigram):
            old = load(source).pieces()
            new = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
            expected = old + [piece for piece in new if piece not in set(old)]
            target = tmp_path / f"{kind}-{source.name}"
            finished = init_tokenizer(
                InitTokenizerOptions(
                    tokenizer=source, output=target, pieces=other / "tokenizer.model", closure=False
                )
            )
            assert load(target).pieces() == expected
            ours = sentencepiece.SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
            assert [ours.id_to_piece(i) for i in range(ours.get_piece_size())] == expected
            reached = finished.manifest.metrics["gates"]["reachability"]
            names = expected[len(old) :]
            alone = [i for i, piece in enumerate(names) if ours.encode("x" + piece)[-1] != len(old) + i]
            assert reached["unreachable"] == len(alone)


def test_chat_template_and_special_tokens_survive(byte_level: Path, tmp_path: Path) -> None:
    init_tokenizer(
        InitTokenizerOptions(
            tokenizer=byte_level, output=tmp_path / "out", pieces=write_pieces(tmp_path / "p.jsonl", ["我们"])
        )
    )
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert config["eos_token"] == "<|endoftext|>"
    assert json.loads((tmp_path / "out" / "special_tokens_map.json").read_text()) == {
        "eos_token": "<|endoftext|>"
    }


def test_the_same_step_again_is_recognized(byte_level: Path, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "p.jsonl", ["我们"])
    assert not init_tokenizer(
        InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "out", pieces=pieces)
    ).skipped
    assert init_tokenizer(
        InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "out", pieces=pieces)
    ).skipped


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "line 1: not JSON"),
        ('{"word": "a"}', "line 1: no `piece`"),
        ('{"piece": "我们"}\n{"piece": 7}', "line 2: `piece` is 7"),
        ('{"piece": ""}', "line 1: the piece is empty"),
        ('{"piece": "我们"}\n\n{"piece": "他们"}', "line 2: blank"),
        ('{"piece": "a\\nb"}', "line 1: .* a line break, which the source tokenizer never joins"),
        ('{"piece": "a\\u0007"}', "line 1: .* a control character"),
        ('{"piece": "\\ud800"}', "line 1: .* unpaired surrogate"),
        ('{"bytes": "xy"}', "line 1: `bytes`"),
        ('{"piece": " the"}', "no new pieces"),
        ("", "contains no pieces"),
    ],
)
def test_a_bad_line_is_named(byte_level: Path, tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=match) as caught:
        init_tokenizer(
            InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "out", pieces=tmp_path / "p.jsonl")
        )
    assert str(tmp_path / "p.jsonl") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_refused(byte_level: Path, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "p.jsonl", ["我们"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="was not written by"):
        init_tokenizer(InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "out", pieces=pieces))
    with pytest.raises(UserError, match="WordPiece"):
        init_tokenizer(
            InitTokenizerOptions(
                tokenizer=makers.word_piece(tmp_path / "wp"), output=tmp_path / "out2", pieces=pieces
            )
        )


def test_a_document_that_changes_without_a_new_piece_stops_the_step(
    byte_level: Path, sentencepiece_unigram: Path
) -> None:
    def damaged(source: Tokenizer) -> Tokenizer:
        """Two old pieces with ids swapped, which neither reachability nor round trip can see."""
        definition = copy.deepcopy(source.definition.json)
        vocabulary = definition["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary[300], vocabulary[301] = vocabulary[301], vocabulary[300]
        else:
            names = source.pieces()
            vocabulary[names[300]], vocabulary[names[301]] = 301, 300
        return from_definition(replace(source.definition, json=definition, model=None))

    for directory in (byte_level, sentencepiece_unigram):
        before = load(directory)
        assert verify(before, before, [], {}, [])["drift"]["changed_without_new_pieces"] == 0
        text = "".join(raw.decode() for raw in before.token_bytes()[300:302])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmforge.tokenizer.verify.SAMPLE", (text,))
            if before.family == "byte-level-bpe":
                with pytest.raises(UserError, match=r"drift check failed.* 1 documents"):
                    verify(before, damaged(before), [], {}, [])
            else:  # there ties may explain it, and the manifest says so
                drift = verify(before, damaged(before), [], {}, [])["drift"]
                assert drift["changed_without_new_pieces"] == 1
                assert "equal score" in str(drift["not_enforced"])


def test_an_old_piece_that_is_never_made_stays_so(byte_level: Path, tmp_path: Path) -> None:
    definition = json.loads((byte_level / "tokenizer.json").read_text())
    size = max(definition["model"]["vocab"].values()) + 1
    definition["model"]["vocab"] |= {"qz": size, "zq": size + 1}
    source = tmp_path / "dead"
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(definition))
    pieces = write_pieces(tmp_path / "p.jsonl", ["qzq", "我们"])
    (tmp_path / "texts.txt").write_text("qz zq\n")
    finished = init_tokenizer(
        InitTokenizerOptions(
            tokenizer=source, output=tmp_path / "out", pieces=pieces, verify_data=[tmp_path / "texts.txt"]
        )
    )
    gates = finished.manifest.metrics["gates"]
    assert gates["drift"]["changed_without_new_pieces"] == 0
    assert "qzq" in gates["reachability"]["reasons"]
    before, after = load(source), load(tmp_path / "out")
    assert before.encode(["qz zq"])[0].tolist() == after.encode(["qz zq"])[0].tolist()
