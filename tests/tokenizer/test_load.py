"""`load`: one tokenizer, however its files are laid out."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from llmforge.errors import UserError
from llmforge.tokenizer import load

from . import makers

TEXTS = ["Hello, world", "", "  two  spaces\n", "世界 <s> </s> <0x0A> x", "naïve café\t🙂"]


def test_sentencepiece_ids_are_sentencepieces_own(sentencepiece_bpe: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_bpe / "tokenizer.model"))
    tokenizer = load(sentencepiece_bpe)
    ids, offsets = tokenizer.encode(TEXTS)
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    for i, text in enumerate(TEXTS):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == processor.encode(text)


def test_special_tokens_in_text_stay_text(sentencepiece_bpe: Path, byte_level: Path) -> None:
    for directory in (sentencepiece_bpe, byte_level):
        tokenizer = load(directory)
        text = "a<s></s><|endoftext|>b"
        ids, _ = tokenizer.encode([text])
        assert not tokenizer.special_ids & set(ids.tolist())
        assert tokenizer.decode(ids.tolist()) == text


def test_named_ids(sentencepiece_bpe: Path, byte_level: Path) -> None:
    llama = load(sentencepiece_bpe)
    assert (llama.family, llama.bos_id, llama.eos_id, llama.pad_id) == ("sentencepiece-bpe", 1, 2, None)
    gpt = load(byte_level)
    assert (gpt.family, gpt.bos_id, gpt.eos_id) == ("byte-level-bpe", None, 0)


@pytest.mark.parametrize("make", ["sentencepiece", "byte_level"])
@pytest.mark.parametrize("frame", [(None, None), (0, None), (1, 2), (None, 0), (0, 0), (499, 499)])
def test_the_prefix_is_what_stands_before_a_text(
    make: str, frame: tuple[int | None, int | None], sentencepiece_bpe: Path, byte_level: Path, tmp_path: Path
) -> None:
    source = load(sentencepiece_bpe if make == "sentencepiece" else byte_level)
    bos, eos = frame
    names = [[name, i] for name, i in (("<before>", bos), ("<after>", eos)) if i is not None]
    before = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in names if name == "<before>"]
    after = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in names if name == "<after>"]
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names},
    }
    processors = [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        template,
    ]
    for processor in (template, {"type": "Sequence", "processors": processors}):
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({**source.definition.json, "post_processor": processor})
        )
        tokenizer = load(tmp_path)
        assert tokenizer.bos_id == bos
        ids = tokenizer.backend.encode("word", add_special_tokens=True).ids
        assert (ids[0] == bos) == (bos is not None)


def test_merges_of_missing_pieces_are_refused(byte_level: Path, tmp_path: Path) -> None:
    raw = json.loads((byte_level / "tokenizer.json").read_text())
    raw["model"]["merges"].append(["no such", "piece"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"cannot be read .* download its files again"):
        load(tmp_path)


def test_token_bytes_join_to_the_text(
    sentencepiece_bpe: Path, sentencepiece_unigram: Path, byte_level: Path
) -> None:
    for directory in (sentencepiece_bpe, sentencepiece_unigram, byte_level):
        tokenizer = load(directory)
        spelled = tokenizer.token_bytes()
        assert len(spelled) == tokenizer.size == len(tokenizer.pieces())
        text = "Hello 世界 🙂" if directory != sentencepiece_unigram else "the cat sat"
        ids, _ = tokenizer.encode([text])
        joined = b"".join(spelled[i] for i in ids.tolist())
        assert joined.removeprefix(b" ") == text.encode()
        assert all(spelled[i] == b"" for i in tokenizer.special_ids)


def test_fingerprint_is_of_the_vocabulary(byte_level: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    backend = tokenizers.Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    backend.enable_truncation(5)
    backend.enable_padding()
    backend.save(str(copy / "tokenizer.json"), pretty=False)
    assert load(copy).fingerprint == load(byte_level).fingerprint
    ids, _ = load(copy).encode(["a text that is longer than five tokens", "a"])
    assert len(ids) > 6

    raw = json.loads((copy / "tokenizer.json").read_text())
    raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    assert load(copy).fingerprint == load(byte_level).fingerprint
    raw["model"]["merges"][:2] = raw["model"]["merges"][1::-1]
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    assert load(copy).fingerprint != load(byte_level).fingerprint


def test_vocabulary_and_merges_are_the_same_tokenizer(byte_level: Path, tmp_path: Path) -> None:
    raw = json.loads((byte_level / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in raw["model"]["merges"])
    )
    tokenizer = load(tmp_path)
    assert tokenizer.fingerprint == load(byte_level).fingerprint
    assert tokenizer.eos_id == 0
    assert tokenizer.encode(TEXTS)[0].tolist() == load(byte_level).encode(TEXTS)[0].tolist()


def test_added_tokens_of_the_configuration_alone_keep_their_ids(
    sentencepiece_bpe: Path, tmp_path: Path
) -> None:
    size = load(sentencepiece_bpe).size
    (tmp_path / "tokenizer.model").write_bytes((sentencepiece_bpe / "tokenizer.model").read_bytes())
    added = {
        "added_tokens_decoder": {str(size + 3): {"content": "<pad>", "special": True}},
        "pad_token": "<pad>",
        "eos_token": "</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    tokenizer = load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (size + 3, 2, size + 4)


def test_what_cannot_be_used_is_said(tmp_path: Path, sentencepiece_bpe: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="WordPiece"):
        load(makers.word_piece(tmp_path / "wordpiece"))
    whole = (sentencepiece_bpe / "tokenizer.model").read_bytes()
    for cut in (len(whole) // 2, len(whole) - 5, 0):
        (tmp_path / "tokenizer.model").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"tokenizer\.model"):
            load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="not JSON"):
        load(tmp_path)
