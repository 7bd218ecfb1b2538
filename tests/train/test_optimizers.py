"""`--optimizer`: what each trains, that a resume gives the same bits, what is refused, and that a file adds one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmforge.backends.common import optimizers
from llmforge.errors import UsageError, UserError

Train = Callable[..., Any]


def losses(save_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def weights(save_dir: Path) -> bytes:
    return (save_dir / "modeling" / "model.safetensors").read_bytes()


def resumed(train: Train, whole: Path, save_dir: Path, step: str, **flags: Any) -> None:
    """Trains `flags` again in `save_dir` from the checkpoint `step` of the finished training `whole`."""
    save_dir.mkdir()
    shutil.copytree(whole / step, save_dir / step)
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(whole / name, save_dir / name)
    train(**flags, output=save_dir, load_checkpoint="latest")


def test_muon_learns_and_resumes_to_the_same_bits(train: Train, tmp_path: Path) -> None:
    flags = {"optimizer": "muon", "max_steps": 8, "save_interval": 3, "learning_rate": 2e-2}
    train(**flags, output=tmp_path / "whole")
    resumed(train, tmp_path / "whole", tmp_path / "again", "epoch-0_step-3", **flags)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.1


def test_muon_updates_matrices_of_layers_by_orthogonal_steps_and_all_else_as_adamw(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    rate = 1e-2
    flags = {
        "max_steps": 1,
        "learning_rate": rate,
        "weight_decay": 0.0,
        "gradient_clipping": 0.0,
        "warmup_steps": 0,
    }
    for name in ("muon", "adamw"):
        train(**flags, optimizer=name, schedule="constant", output=tmp_path / name)
    before = load_file(tiny_model / "model.safetensors")
    muon, adamw = (
        load_file(tmp_path / name / "modeling" / "model.safetensors") for name in ("muon", "adamw")
    )
    matrices = {name for name in before if ".layers." in name and before[name].ndim == 2}
    assert len(matrices) == 3 * 7
    for name in before:
        if name not in matrices:
            assert torch.equal(muon[name], adamw[name]), name
            continue
        update = (before[name] - muon[name]) / (rate * 0.2 * max(before[name].shape) ** 0.5)
        sizes = torch.linalg.svdvals(update)
        assert sizes.max() < 1.4, name
        assert sizes.median() > 0.3, name  # five steps leave the smallest small


def test_a_table_inside_a_layer_is_no_matrix_to_muon() -> None:
    from types import SimpleNamespace

    from llmforge.backends.common.optimizers.muon import hidden_matrices

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4)
            self.experts = torch.nn.Parameter(torch.zeros(2, 4, 4))

    base = torch.nn.Module()
    base.layers = torch.nn.ModuleList([Layer()])
    causal = SimpleNamespace(base_model=base, config=SimpleNamespace(num_hidden_layers=1, model_type="x"))
    assert list(hidden_matrices(causal, dict(base.named_parameters()))) == ["layers.0.mix.weight"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"plugin": "fsdp"}, "--plugin fsdp"),
        ({"plugin": "gemini", "mixed_precision": "bf16", "rehearse": True}, "--plugin gemini"),
        ({"trainable": "lora", "lora_rank": 4}, "--trainable lora"),
        ({"trainable": "new-embeddings"}, "--trainable new-embeddings"),
    ],
)
def test_muon_is_refused_where_it_has_no_whole_matrices(
    flags: dict[str, Any], named: str, train: Train
) -> None:
    with pytest.raises(UsageError, match=f"--optimizer muon contradicts {named}.*--optimizer adamw"):
        train(**flags, optimizer="muon")


def test_a_name_that_is_none_is_refused_with_those_that_are(train: Train) -> None:
    with pytest.raises(UsageError, match=r"--optimizer adam: must be one of adamw, muon\."):
        train(optimizer="adam")
    with pytest.raises(UsageError, match=r"--schedule cos: must be one of cosine, linear, constant, wsd\."):
        train(schedule="cos")


def test_the_state_of_one_optimizer_is_not_resumed_by_another(train: Train) -> None:
    train(optimizer="muon", time_limit="0")
    with pytest.raises(UserError, match=r"--optimizer muon, not of adamw; .*modeling starts a new stage"):
        train(load_checkpoint="latest")


SGD = """
import torch
from llmforge.backends.common.optimizers.base import Optimizer

class Momentum(Optimizer):
    def make(self, causal, parameters, settings):
        made = torch.optim.SGD(parameters.values(), lr=0.0, momentum=0.9)
        for parameter in parameters.values():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [made]

OPTIMIZER = Momentum()
"""


def test_one_file_adds_an_optimizer(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "momentum.py").write_text(SGD)
    monkeypatch.setattr(optimizers, "__path__", [*optimizers.__path__, str(tmp_path / "files")])
    assert optimizers.names() == ["adamw", "momentum", "muon"]
    flags = {"optimizer": "momentum", "max_steps": 4, "save_interval": 2, "learning_rate": 0.5}
    train(**flags, output=tmp_path / "whole")
    resumed(train, tmp_path / "whole", tmp_path / "again", "epoch-0_step-2", **flags)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
