"""Models with state between positions, on rows of one document: transformers' own loss, or a refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.prepare import prepare_data
from llmforge.errors import UserError
from llmforge.train.sampler import Sampler

from .conftest import PADDED, WORDS

STATE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 8}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "intermediate_size": 64}),
}


def make(path: Path, tiny_model: Path, kind: str, fields: dict[str, Any]) -> Path:
    import transformers

    shutil.copytree(tiny_model, path)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=PADDED,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **fields,
    )
    (path / "config.json").unlink()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (path / "llmforge.json").unlink()
    return path


@pytest.fixture
def prepared(tiny_model: Path, tmp_path: Path) -> Callable[[int], Path]:
    """`prepared(1)` is a dataset with that `--documents-per-row`, from documents shorter and longer than a row."""
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, size)) for size in (3, 60, 9, 20, 7, 30, 12, 5)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.jsonl").write_text("".join(json.dumps({"target": text}) + "\n" for text in texts))

    def run(documents_per_row: int) -> Path:
        output = tmp_path / f"data-{documents_per_row}"
        options = PrepareOptions(
            [tmp_path / "in"],
            tiny_model,
            output,
            max_length=64,
            bins=1,
            documents_per_row=documents_per_row,
            workers=1,
        )
        return prepare_data(options).output

    return run


@pytest.mark.parametrize("name", STATE)
def test_a_step_has_the_loss_of_transformers(
    name: str, prepared: Callable[[int], Path], train: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = make(tmp_path / "model", tiny_model, *STATE[name])
    data = prepared(1)
    given = {"model": model, "micro_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    train(data=[data], **given)
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    dataset = PackedDataset([data])
    assert dataset.documents_per_row == 1
    theirs, loss, tokens = AutoModelForCausalLM.from_pretrained(model), 0.0, 0
    for row in dataset.rows(Sampler(dataset, 42).next(8)):
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            loss += float(theirs(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert line["tokens"] == tokens
    assert line["loss"] == pytest.approx(loss / tokens, abs=1e-4)
    with pytest.raises(UserError, match=r"has a recurrent state.*prepare-data --documents-per-row 1"):
        train(data=[prepared(0)], output=tmp_path / "refused", **given)
