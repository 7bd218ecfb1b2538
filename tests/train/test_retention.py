"""What keeps a model from forgetting, each against a plain loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmforge.backends.base import MicroBatch
from llmforge.backends.common.rates import Rates
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError, UserError
from llmforge.options import make
from llmforge.train.options import TrainOptions
from llmforge.train.rates import RateOptions
from llmforge.train.retention import RetentionOptions
from llmforge.weights.directory import ModelDirectory

Train = Callable[..., Any]
OLD_ROWS, ROWS, LENGTH = 300, 330, 24
TABLE = "model.embed_tokens.weight"


def weights(save_dir: Path, name: str = "modeling") -> dict[str, torch.Tensor]:
    return load_file(save_dir / name / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def engine_of(model: Path, **options: Any) -> Any:
    from llmforge.backends.torch.engine import NativeEngine

    common = {"attention": "sdpa", "clip": 0.0, **options}
    return NativeEngine(Settings(ModelDirectory(model), "fp32", parse("all"), OLD_ROWS, ROWS, 1, 0, **common))


def batches(count: int) -> list[MicroBatch]:
    """Steps of two rows of one document."""
    chance, made = torch.Generator().manual_seed(0), []
    for _ in range(count):
        ids = torch.randint(0, ROWS, (2, LENGTH), generator=chance)
        targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
        positions = torch.arange(LENGTH).repeat(2, 1)
        made.append(MicroBatch(ids, targets, positions, torch.zeros_like(ids), ((LENGTH,),) * 2))
    return made


def again(whole: Path, save_dir: Path, step: str) -> None:
    """A copy of the finished run `whole` as it was behind the checkpoint `step`."""
    save_dir.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(whole / name, save_dir / name)
    shutil.copytree(whole / step, save_dir / step)


def test_l2_to_the_start_is_that_of_a_plain_loop(tiny_model: Path) -> None:
    """With learning rates by group: the pull of an embedding's old rows has their rate, new rows have none."""
    from transformers import LlamaForCausalLM

    strength, rates = 3.0, Rates(0.5, 2.0, 0.8)
    engine = engine_of(tiny_model, l2_to_start=strength, rates=rates)
    free = engine_of(tiny_model, rates=rates)
    model = LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    table = model.model.embed_tokens.weight.detach()
    old, new = (torch.nn.Parameter(part.clone()) for part in (table[:OLD_ROWS], table[OLD_ROWS:]))
    groups: list[dict[str, Any]] = [{"params": [old], "factor": 0.5}, {"params": [new], "factor": 2.0}]
    for name, parameter in model.named_parameters():
        if name != TABLE:
            depth = 2 - int(name.split(".")[2]) if "layers" in name else 0
            wd = 0.1 if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "factor": 0.8**depth, "weight_decay": wd})
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)
    start = [group["params"][0].detach().clone() for group in groups]
    for rate, batch in zip((1e-2, 2e-2, 1e-2, 3e-2), batches(4), strict=True):
        for one in (engine, free):
            one.train_step([batch], rate, lambda loss, norm: True)
        whole = torch.cat([old, new])
        names = {TABLE: whole, "lm_head.weight": whole}
        logits = torch.func.functional_call(model, names, (batch.input_ids,), tie_weights=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        for group, begin in zip(plain.param_groups, start, strict=True):
            group["lr"] = rate * group["factor"]
            (weight,) = group["params"]
            if weight is not new:
                weight.data -= group["lr"] * strength * (weight.data - begin)
        plain.step()
        plain.zero_grad()
    expected = {**dict(model.named_parameters()), TABLE: torch.cat([old, new])}
    parameters = dict(engine.causal.named_parameters())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, expected[name], atol=3e-4, rtol=0, msg=name)
    near, far = (
        (dict(one.causal.named_parameters())[TABLE] - table)[:OLD_ROWS].norm() for one in (engine, free)
    )
    assert near < 0.97 * far


def test_l2_resumes_to_the_same_bits_and_needs_the_same_start(
    train: Train, tiny_model: Path, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {
        "retention": RetentionOptions(l2_to_start=5.0),
        "rates": RateOptions(new_embedding_lr=2.0),
        "max_steps": 6,
        "save_interval": 2,
    }
    train(**flags, output=tmp_path / "whole")
    for name in ("again", "other"):
        again(tmp_path / "whole", tmp_path / name, "epoch-0_step-2")
    train(**flags, output=tmp_path / "again", load_checkpoint="latest")
    assert same(weights(tmp_path / "again"), weights(tmp_path / "whole"))
    other = make_tiny_model(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match=r"belongs to a run with another start"):
        train(**flags, model=other, output=tmp_path / "other", load_checkpoint="latest")
    train(max_steps=6, rates=RateOptions(new_embedding_lr=2.0), output=tmp_path / "free")
    start = load_file(tiny_model / "model.safetensors")
    near, far = (
        sum(float((weights(tmp_path / name)[key] - start[key])[:OLD_ROWS].norm()) for key in start)
        for name in ("whole", "free")
    )
    assert near < far


def test_l2_of_zero_changes_nothing(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, output=tmp_path / "plain")
    train(max_steps=3, output=tmp_path / "zero", retention=RetentionOptions(l2_to_start=0.0))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))


def test_the_plan_counts_the_start(tiny_model: Path, tiny_data: Path, llmforge: Any) -> None:
    done = llmforge("plan", "--model", tiny_model, "--data", tiny_data, "--json", "--l2-to-start", "0.1")
    found = json.loads(done.stdout)
    assert found["memory"]["start"] == 4 * found["trained_parameters"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"l2_to_start": 0.1, "trainable": "lora", "lora_rank": 2},
            r"--l2-to-start contradicts --trainable lora",
        ),
        (
            {"l2_to_start": 0.1, "trainable": "new-embeddings"},
            r"--l2-to-start contradicts --trainable new-emb",
        ),
        ({"l2_to_start": 0.1, "plugin": "zero2"}, r"--l2-to-start contradicts --plugin zero2"),
        (
            {"l2_to_start": 600, "learning_rate": 1e-3, "embedding_lr": 2},
            r"--l2-to-start 600 times the learning rate 0.002 is more than 1",
        ),
        ({"l2_to_start": -0.1}, r"--l2-to-start -0.1: must be at least 0"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(TrainOptions, {"model": tmp_path, "data": [tmp_path], "output": tmp_path / "run", **flags})


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--l2-to-start", 20)])
def test_a_model_cut_in_two_is_kept_as_a_whole_one(
    options: tuple[object, ...],
    tiny_model: Path,
    tiny_data: Path,
    llmforge: Any,
    two_processes: Any,
    tmp_path: Path,
) -> None:
    """And one process continues what two began."""
    common = [
        *("--model", tiny_model, "--data", tiny_data, "--mixed-precision", "fp32", "--learning-rate", "1e-2"),
        *(
            "--schedule",
            "constant",
            "--save-interval",
            2,
            "--max-steps",
            4,
            "--micro-batch-size",
            2,
            *options,
        ),
    ]
    alone = ("--gradient-accumulation-steps", 2)
    llmforge("train", *common, *alone, "--output", tmp_path / "one")
    two_processes(*common, "--plugin", "fsdp", "--output", tmp_path / "two")
    again(tmp_path / "two", tmp_path / "again", "epoch-0_step-2")
    llmforge("train", *common, *alone, "--output", tmp_path / "again", "--load-checkpoint", "latest")
    one = weights(tmp_path / "one")
    for name in ("two", "again"):
        other = weights(tmp_path / name)
        assert max((one[key] - other[key]).abs().max() for key in one) < 2e-4
