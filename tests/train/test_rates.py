"""Learning rates by group: the same as separate optimizers, resumed to the same bits, and refused where they contradict."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmforge.backends.base import MicroBatch
from llmforge.backends.common import optimizers
from llmforge.backends.common.rates import Rates
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError, UserError
from llmforge.options import make
from llmforge.train.options import TrainOptions
from llmforge.train.rates import RateOptions
from llmforge.weights.directory import ModelDirectory

Train = Callable[..., Any]
OLD_ROWS, ROWS, PADDED = 300, 330, 336  # of the tiny model
BOTH = RateOptions(embedding_lr=0.5, new_embedding_lr=5.0, layer_lr_decay=0.8)


def weights(save_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(save_dir / "modeling" / "model.safetensors")


class Tiny(torch.nn.Module):
    """A causal model as far as optimizers look: an embedding, a head, and layers with a matrix and a norm."""

    def __init__(self, rows: int, layers: int, tied: bool) -> None:
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"mix": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)})
            for _ in range(layers)
        )
        self.base_model.embed = torch.nn.Embedding(rows, 4)
        self.head = torch.nn.Linear(4, rows, bias=False)
        if tied:
            self.head.weight = self.base_model.embed.weight
        self.config = SimpleNamespace(num_hidden_layers=layers, model_type="tiny")

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.base_model.embed

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


@given(
    rows=st.integers(2, 9),
    old=st.integers(0, 9),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    factors=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0, 7.0])] * 2, st.sampled_from([1.0, 0.5])),
    optimizer=st.sampled_from(["adamw", "muon"]),
    decay=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_part_is_stepped_as_by_an_optimizer_of_its_own(
    rows: int, old: int, layers: int, tied: bool, factors: Any, optimizer: str, decay: bool
) -> None:
    """To the last bit, weight decay included: old and new rows of one matrix as two parameters."""
    torch.manual_seed(0)
    old, tiny = min(old, rows), Tiny(rows, layers, tied)
    rates = Rates(*factors)
    options = Settings(
        *(ModelDirectory(Path()), "fp32", parse("all"), old, rows, 1, 0), decay_embeddings=decay, rates=rates
    )
    parameters = dict(tiny.named_parameters())
    made = optimizers.find(optimizer).make(tiny, parameters, options)

    def alone(name: str, value: torch.Tensor, factor: float) -> tuple[torch.Tensor, Any, float]:
        copy = torch.nn.Parameter(value.detach().clone())
        table = "embed" in name or "head" in name
        wd = options.weight_decay if copy.ndim >= 2 and (decay or not table) else 0.0
        if optimizer == "muon" and "mix.weight" in name:
            return copy, torch.optim.Muon([copy], weight_decay=wd, adjust_lr_fn="match_rms_adamw"), factor
        return copy, torch.optim.AdamW([copy], betas=(0.9, 0.95), weight_decay=wd, fused=True), factor

    expected: dict[str, list[Any]] = {}
    for name, p in parameters.items():
        if "layers" in name:
            depth = layers - 1 - int(name.split(".")[2])
            expected[name] = [alone(name, p, rates.layer_decay**depth)]
        elif rates.embeddings == rates.new_embeddings:  # torch rounds the end of a tensor in another way
            expected[name] = [alone(name, p, rates.embeddings)]
        else:
            expected[name] = [
                alone(name, p[:old], rates.embeddings),
                alone(name, p[old:], rates.new_embeddings),
            ]
    for rate in (1e-2, 3e-2, 2e-3):
        for name, p in parameters.items():
            p.grad = torch.randn_like(p)
            begin = 0
            for copy, _, _ in expected[name]:
                copy.grad = p.grad[begin : begin + len(copy)].clone()
                begin += len(copy)
        for one, scale in [(o, 1.0) for o in made] + [(o, f) for v in expected.values() for _, o, f in v]:
            for group in one.param_groups:
                group["lr"] = rate * group.get("factor", scale)
            one.step()
    for name, p in parameters.items():
        assert torch.equal(p, torch.cat([copy for copy, _, _ in expected[name]])), name


def test_training_is_that_of_a_plain_loop(tiny_model: Path) -> None:
    """Three steps of the engine on rows of one document, and the same with transformers and torch alone."""
    from transformers import LlamaForCausalLM

    from llmforge.backends.torch.engine import NativeEngine

    rates, length = Rates(0.5, 5.0, 0.8), 24
    engine = NativeEngine(
        Settings(
            ModelDirectory(tiny_model),
            "fp32",
            parse("all"),
            OLD_ROWS,
            ROWS,
            1,
            0,
            attention="sdpa",
            rates=rates,
            clip=0.7,
        )
    )
    model = LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    table = model.model.embed_tokens.weight.detach()
    old, new = (torch.nn.Parameter(part.clone()) for part in (table[:OLD_ROWS], table[OLD_ROWS:]))
    groups = [{"params": [old], "factor": 0.5}, {"params": [new], "factor": 5.0}]
    for name, parameter in model.named_parameters():
        if "embed_tokens" not in name:
            depth = 2 - int(name.split(".")[2]) if "layers" in name else 0
            wd = 0.1 if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "factor": 0.8**depth, "weight_decay": wd})
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)
    chance = torch.Generator().manual_seed(0)
    for rate in (1e-2, 2e-2, 1e-2):
        ids = torch.randint(0, ROWS, (2, length), generator=chance)
        targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
        positions = torch.arange(length).repeat(2, 1)
        batch = MicroBatch(ids, targets, positions, torch.zeros_like(ids), ((length,),) * 2)
        engine.train_step([batch], rate, lambda loss, norm: True)
        whole = torch.cat([old, new])
        names = {"model.embed_tokens.weight": whole, "lm_head.weight": whole}
        logits = torch.func.functional_call(model, names, (ids,), tie_weights=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 0.7)
        for group in plain.param_groups:
            group["lr"] = rate * group["factor"]
        plain.step()
        plain.zero_grad()
    expected = {**dict(model.named_parameters()), "model.embed_tokens.weight": torch.cat([old, new])}
    for name, parameter in engine.causal.named_parameters():
        # AdamW magnifies the last bits of gradients that are almost zero; a step is 1e-2 or 2e-2 times a factor.
        torch.testing.assert_close(parameter, expected[name], atol=2e-4, rtol=0, msg=name)
    moved = (engine.causal.model.embed_tokens.weight - table).abs().amax(dim=1)
    assert moved[OLD_ROWS:ROWS].min() > 5 * moved[:OLD_ROWS].median()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resume_gives_the_same_bits(optimizer: str, train: Train, tmp_path: Path) -> None:
    flags = {"optimizer": optimizer, "rates": BOTH, "max_steps": 6, "save_interval": 2}
    train(**flags, output=tmp_path / "whole")
    shutil.copytree(
        tmp_path / "whole", tmp_path / "again", ignore=shutil.ignore_patterns("*step-[46]", "llmforge.json")
    )
    shutil.copy(*(tmp_path / name / "epoch-0_step-2" / "llmforge.json" for name in ("whole", "again")))
    train(**flags, output=tmp_path / "again", load_checkpoint="latest")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_is_resumed_with_other_rates(train: Train, tmp_path: Path) -> None:
    """The state lies under the same names whatever the rates are."""
    train(max_steps=4, save_interval=2, schedule="constant", rates=BOTH)
    shutil.rmtree(tmp_path / "run" / "epoch-0_step-4")
    (tmp_path / "run" / "llmforge.json").unlink()
    train(max_steps=4, save_interval=2, schedule="constant", load_checkpoint="latest")
    assert (tmp_path / "run" / "epoch-0_step-4").is_dir()


def test_rates_of_one_change_nothing(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, output=tmp_path / "plain")
    train(max_steps=3, output=tmp_path / "ones", rates=RateOptions(1.0, 1.0, 1.0))
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "ones")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_rate_of_zero_keeps_old_rows(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    train(max_steps=3, rates=RateOptions(embedding_lr=0.0, new_embedding_lr=1.0))
    before = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    after = weights(tmp_path / "run")["model.embed_tokens.weight"]
    assert torch.equal(before[:OLD_ROWS], after[:OLD_ROWS])
    assert (before[OLD_ROWS:ROWS] != after[OLD_ROWS:ROWS]).any(dim=1).all()


def test_the_manifest_has_the_factors_and_only_those_given(train: Train, tmp_path: Path) -> None:
    train(max_steps=1, rates=RateOptions(new_embedding_lr=3.0))
    from llmforge.steps import read_manifest

    arguments = read_manifest(tmp_path / "run").arguments
    assert arguments["new_embedding_lr"] == 3.0
    assert "embedding_lr" not in arguments
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "new_embedding_lr: 3.0" in config


def test_the_dry_run_and_plan_show_the_peaks(llmforge: Any, tiny_model: Path, tiny_data: Path) -> None:
    words = ("--model", tiny_model, "--data", tiny_data, "--learning-rate", "1e-3", "--new-embedding-lr", "4")
    done = llmforge("plan", *words, "--layer-lr-decay", "0.5")
    assert "0.004   new embeddings" in done.stdout
    assert "0.00025   first layer" in done.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"embedding_lr": 2, "trainable": "0-1"},
            r"--embedding-lr contradicts --trainable 0-1, which trains no embeddings",
        ),
        (
            {"new_embedding_lr": 2, "trainable": "lora", "lora_rank": 2},
            r"--new-embedding-lr contradicts --trainable lora",
        ),
        ({"layer_lr_decay": 0.9, "trainable": "embeddings"}, r"which trains no layers"),
        (
            {"embedding_lr": 2, "new_embedding_lr": 3, "trainable": "new-embeddings,0-"},
            r"--embedding-lr contradicts --trainable new-embeddings,0-, .* give --new-embedding-lr",
        ),
        ({"embedding_lr": -1}, r"--embedding-lr -1: must be at least 0"),
        ({"layer_lr_decay": 1.5}, r"--layer-lr-decay 1.5: must be between 0.01 and 1"),
        (
            {"new_embedding_lr": 2, "plugin": "zero2"},
            r"--new-embedding-lr contradicts --plugin zero2; use native",
        ),
    ],
)
def test_contradictions_are_refused(flags: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    values = {"model": tmp_path, "data": [tmp_path], "output": tmp_path / "run", **flags}
    with pytest.raises(UsageError, match=sentence):
        make(TrainOptions, values)


def test_new_rows_of_a_model_that_was_not_grown_are_refused(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    from llmforge.steps import manifest_path, read_manifest, write_manifest

    model = tmp_path / "source"
    shutil.copytree(tiny_model, model)
    record = read_manifest(model)
    record.outputs["vocabulary"]["source"] = ROWS
    write_manifest(manifest_path(model), record)
    with pytest.raises(
        UserError, match=r"--new-embedding-lr 2: .*source has no new tokens; use --embedding-lr"
    ):
        train(model=model, rates=RateOptions(new_embedding_lr=2.0))


@pytest.mark.slow
def test_a_model_cut_in_two_is_stepped_as_a_whole_one(
    tiny_model: Path, tiny_data: Path, llmforge: Any, two_processes: Any, tmp_path: Path
) -> None:
    """The edge between old and new rows lies inside of one rank's part. Its checkpoint is resumed by one process."""
    common = [
        *("--model", tiny_model, "--data", tiny_data, "--mixed-precision", "fp32", "--learning-rate", "1e-2"),
        *("--schedule", "constant", "--save-interval", 2, "--max-steps", 4, "--micro-batch-size", 2),
        *("--embedding-lr", "0.5", "--new-embedding-lr", "5", "--layer-lr-decay", "0.8"),
    ]
    llmforge("train", *common, "--gradient-accumulation-steps", 2, "--output", tmp_path / "one")
    one = weights(tmp_path / "one")
    for plugin in ("fsdp", "ddp"):
        two_processes(*common, "--plugin", plugin, "--output", tmp_path / plugin)
        two = weights(tmp_path / plugin)
        assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
    shutil.rmtree(tmp_path / "fsdp" / "epoch-0_step-4")
    (tmp_path / "fsdp" / "llmforge.json").unlink()
    llmforge(
        *("train", *common, "--gradient-accumulation-steps", 2, "--output", tmp_path / "fsdp"),
        *("--load-checkpoint", "latest"),
    )
    again = weights(tmp_path / "fsdp")
    assert max((one[name] - again[name]).abs().max() for name in one) < 1e-4
