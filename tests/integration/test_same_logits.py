"""The exported model is the one in the training process: its logits are compared across processes."""

import json

import numpy as np


def test_the_export_gives_the_logits_of_the_training_process(tiny_model, tmp_path, llmforge, run_python):
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"target": f"the cat sat on the mat {i} and ate the rat"}) + "\n" for i in range(100)]
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines))
    words = ["--data-input-dirs", tmp_path / "corpus", "--tokenizer-dir", tiny_model, "--max-length", 64]
    llmforge("prepare-data", *words, "--data-output-dir", tmp_path / "data")
    train = f"""
import numpy as np, torch
from pathlib import Path
from llmforge.train.options import TrainOptions
from llmforge.train.setup import Ranks, set_up
from llmforge.train.trainer import Trainer
from llmforge.weights.directory import ModelDirectory
config = TrainOptions(model=Path({str(tiny_model)!r}), data=[Path({str(tmp_path / "data")!r})],
                     output=Path({str(tmp_path / "trained")!r}), max_steps=5, learning_rate=1e-2, mixed_precision="bf16")
with Ranks.joined(config) as ranks:
    trainer = Trainer(config, set_up(config, ModelDirectory(config.model), ranks), ranks)
    assert trainer.run() is not None
with torch.no_grad():
    logits = trainer.engine.causal.eval()(torch.arange(200)[None]).logits[0].float()
np.save({str(tmp_path / "logits.npy")!r}, logits.numpy())
"""
    run_python(train)
    llmforge("export", "--checkpoint", tmp_path / "trained" / "modeling", "--output-dir", tmp_path / "export")
    read = f"""
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "export")!r}, dtype=torch.float32)
with torch.no_grad():
    logits = model(torch.arange(200)[None]).logits[0]
assert logits.shape[1] == len(AutoTokenizer.from_pretrained({str(tmp_path / "export")!r}))
np.save({str(tmp_path / "exported.npy")!r}, logits.numpy())
"""
    run_python(read)
    trained, exported = np.load(tmp_path / "logits.npy"), np.load(tmp_path / "exported.npy")
    assert trained.shape[1] > exported.shape[1]  # padding rows are cut
    assert np.abs(trained[:, : exported.shape[1]] - exported).max() <= 1e-4
