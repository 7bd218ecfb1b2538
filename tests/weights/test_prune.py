"""Pruned models: kept rows keep their bytes, logits of kept tokens are the same, and configurations name the new ids."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.prune import prune
from llmforge.embedding.prune_options import PruneOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UsageError, UserError
from llmforge.steps import Finished, read_manifest
from llmforge.tokenizer import load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.learn import learn_pieces
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions

from .conftest import ARCHITECTURES, OLD_SIZE, TEXTS
from .test_grow import tensors

CHINESE = ["今天天气很好,我们一起去公园散步。", "春天来了,公园里的花都开了,天气很好。"] * 20


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def pruning(model: Path, output: Path, data: Path, keep: Path | None = None, **words: Any) -> Finished:
    keeps = [keep] if keep else []
    texts = {"data": [str(data)], "keep_data": [str(path) for path in keeps]}
    return prune(PruneOptions(model=model, output=output, **texts, **words), [data], keeps)


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("gpt2", True), ("phi", False), ("gemma", True)]
)
def test_logits_of_kept_tokens_are_the_same(
    architecture: str, tied: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = tiny_model(architecture, OLD_SIZE + 19, tied=tied, eos_token_id=[0, 299], pad_token_id=300)
    data = written(tmp_path / "data.jsonl", TEXTS[:1])
    finished = pruning(source, tmp_path / "out", data, min_count=1)
    removed = finished.manifest.metrics["removed"]
    rows = OLD_SIZE - removed
    assert finished.manifest.outputs["vocabulary"] == {"source": rows, "size": rows, "padded": rows + 19}
    before, after = load(source), load(tmp_path / "out")
    kept = [before.pieces().index(piece) for piece in after.pieces()]
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "out"))
    ids = after.encode(TEXTS[:1])[0]
    with torch.inference_mode():
        was = old(torch.tensor([[kept[i] for i in ids]])).logits
        now = new(torch.from_numpy(ids.astype(np.int64))[None]).logits
    torch.testing.assert_close(now[..., :rows], was[..., kept])
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / "out" / name).read_text())
        assert said["eos_token_id"] == [0, kept.index(299)], name
        assert said["pad_token_id"] == kept.index(300), name


@pytest.mark.parametrize("architecture", [pytest.param(one, marks=pytest.mark.slow) for one in ARCHITECTURES])
def test_every_architecture_is_pruned_and_grows_to_its_size_again(
    architecture: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model(architecture)
    data = written(tmp_path / "data.jsonl", [*CHINESE, TEXTS[2]])
    pruned = tmp_path / "pruned"
    pruning(source, pruned, data, num_tokens=30, verify=architecture == "llama")
    learn_pieces(
        LearnPiecesOptions(tokenizer=pruned, num_pieces=30, output=tmp_path / "p.jsonl", data=[str(data)])
    )
    init_tokenizer(InitTokenizerOptions(tokenizer=pruned, pieces=tmp_path / "p.jsonl", output=tmp_path / "t"))
    resize(pruned, tmp_path / "t", tmp_path / "grown", ResizeOptions(pad_to_multiple_of=1))
    was, now = tensors(source), tensors(tmp_path / "grown")
    assert {name: one.shape for name, one in was.items()} == {name: one.shape for name, one in now.items()}
    if architecture == "llama":
        assert read_manifest(pruned).metrics["verified"] == 0


def test_a_model_with_a_second_table_of_tokens_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Gemma 3n, which the oldest transformers lacks, has one that is found by the ids too, so logits would change."""
    source = tiny_model()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size_per_layer_input": OLD_SIZE}))
    data = written(tmp_path / "data.jsonl", TEXTS[:1])
    with pytest.raises(UserError, match="has a second embedding of every token"):
        pruning(source, tmp_path / "out", data, num_tokens=30)
    with pytest.raises(UserError, match="has a second embedding of every token"):
        resize(source, source, tmp_path / "resized", ResizeOptions())


def test_a_model_with_code_of_its_own_is_pruned_without_running_it(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model()
    config = json.loads((source / "config.json").read_text())
    own = {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (source / "config.json").write_text(json.dumps({**config, **own}))
    (source / "code.py").write_text("raise SystemExit('the code was run')")
    data = written(tmp_path / "data.jsonl", TEXTS[:1])
    pruning(source, tmp_path / "out", data, num_tokens=30)
    assert (tmp_path / "out" / "code.py").is_file()


def test_what_cannot_be_pruned_is_refused_in_a_sentence(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model()
    data = written(tmp_path / "data.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"--num-tokens 5,000: only \d+ tokens"):
        pruning(source, tmp_path / "out", data, num_tokens=5000)
    with pytest.raises(UserError, match="can be removed without"):
        pruning(source, tmp_path / "out", data, data, num_tokens=OLD_SIZE - 257)
    one = PruneOptions(model=source, data=[str(data)], output=tmp_path / "out", num_tokens=1)
    for words, message in (
        ({"tokenizer": source}, "either --model or --tokenizer"),
        ({"min_count": 1}, "either --num-tokens or --min-count"),
        ({"model": None, "tokenizer": source, "verify": True}, "--verify compares logits"),
        ({"tokenizer_scheme": "llama3"}, "--tokenizer-scheme is for --tokenizer"),
        ({"num_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            replace(one, **words)
    assert not (tmp_path / "out").exists()
