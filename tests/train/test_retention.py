"""What keeps a model from forgetting, each against a plain loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmforge.backends.base import MicroBatch
from llmforge.backends.common.rates import Rates
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError, UserError
from llmforge.options import make
from llmforge.train.options import TrainOptions
from llmforge.train.plan import make_plan
from llmforge.train.rates import RateOptions
from llmforge.train.retention import RetentionOptions
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import Logits

Train = Callable[..., Any]
OLD_ROWS, ROWS, PADDED, LENGTH = 300, 330, 336, 24
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


def test_the_plan_counts_the_start_and_the_source(tiny_model: Path, tiny_data: Path) -> None:
    values = {"model": tiny_model, "data": [tiny_data], "output": tiny_model, "mixed_precision": "bf16"}
    plain, kept = (
        make_plan(make(TrainOptions, {**values, **more}), ModelDirectory(tiny_model)).to_json()
        for more in ({}, {"l2_to_start": 0.1, "distill_from_source": 1.0})
    )
    assert kept["memory"]["start"] == 4 * kept["trained_parameters"]
    assert kept["memory"]["source model"] == 2 * kept["parameters"]
    head = PADDED * 32
    assert kept["flops_per_token"] - plain["flops_per_token"] == pytest.approx(
        plain["flops_per_token"] / 3 + 6 * head
    )


@given(
    documents=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    ignored=st.sets(st.integers(0, 23)),
)
@settings(max_examples=60, deadline=None)
def test_the_source_says_nothing_behind_a_new_token(documents: list[list[int]], ignored: set[int]) -> None:
    """Ids below 8 are old; the last position of a document predicts nothing."""
    from llmforge.backends.torch.distill import Teacher

    teacher = Teacher.__new__(Teacher)
    teacher.old_rows = 8
    ids, targets, positions, expected = [], [], [], []
    for document in documents:
        for place, token in enumerate(document):
            target = document[place + 1] if place + 1 < len(document) and len(ids) not in ignored else -100
            if 0 <= target < 8 and max(document[: place + 1]) < 8:
                expected.append(len(ids))
            ids, targets, positions = [*ids, token], [*targets, target], [*positions, place]
    row = [torch.tensor([values]) for values in (ids, targets, positions)]
    batch = MicroBatch(*row, torch.zeros_like(row[0]), (tuple(map(len, documents)),))
    assert teacher.positions(batch).tolist() == expected


@pytest.mark.parametrize("are", [Logits(), Logits(scale=0.3), Logits(scale=2.0, softcap=5.0)])
def test_the_divergence_has_the_gradients_of_autograd(are: Logits) -> None:
    """With a bias, and what heads do to their products; of the rows of old tokens alone."""
    from llmforge.backends.torch.distill import _Divergence

    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((9, 4), (7, 4), (7,)))
    theirs, kept = torch.randn(9, 5).log_softmax(1), torch.tensor([0, 2, 3, 8])
    total = _Divergence.apply(
        *(hidden, weight, bias, lambda rows: theirs[rows], kept, 5, torch.float32, 3, are, True)
    )
    logits = (hidden[kept] @ weight[:5].T + bias[:5]) * are.scale
    logits = logits if are.softcap is None else are.softcap * torch.tanh(logits / are.softcap)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(1), theirs[kept], reduction="sum", log_target=True
    )
    torch.testing.assert_close(total, expected)
    inputs = (hidden, weight, bias)
    for one, other in zip(
        torch.autograd.grad(3 * total, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk", [5, 512])
def test_distillation_is_that_of_a_plain_loop(
    chunk: int, tiny_model: Path, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """By a source with fewer rows, in chunks and at once."""
    from transformers import LlamaForCausalLM

    source = make_tiny_model(tmp_path / "source", seed=1, vocab_size=ROWS)
    share, told = 0.7, []
    engine = engine_of(
        tiny_model, distillation=share, teacher=ModelDirectory(source), head_chunk=chunk, weight_decay=0.0
    )
    model, teacher = (
        LlamaForCausalLM.from_pretrained(path, attn_implementation="eager") for path in (tiny_model, source)
    )
    plain = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for rate, batch in zip((1e-2, 2e-2, 1e-2), batches(3), strict=True):
        result = engine.train_step([batch], rate, lambda loss, norm: True)
        logits = model(batch.input_ids).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"
        )
        with torch.no_grad():
            known = torch.where(batch.input_ids < OLD_ROWS, batch.input_ids, 0)
            wanted = teacher(known).logits[..., :OLD_ROWS].log_softmax(-1)
        ours = logits[..., :OLD_ROWS].log_softmax(-1)
        divergence = (wanted.exp() * (wanted - ours)).sum(-1)
        counted = 0
        for i in range(2):
            for j in range(LENGTH - 1):
                if batch.input_ids[i, : j + 2].max() < OLD_ROWS:
                    counted, loss = counted + 1, loss + share * divergence[i, j]
        told.append(counted)
        (loss / 46).backward()
        plain.param_groups[0]["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        assert result.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        plain.step()
        plain.zero_grad()
    assert max(told) > 5
    expected = dict(model.named_parameters())
    for name, parameter in engine.causal.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=3e-4, rtol=0, msg=name)


def test_distillation_keeps_the_model_near_its_source_and_resumes_to_the_same_bits(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {
        "retention": RetentionOptions(distill_from_source=10.0),
        "max_steps": 6,
        "save_interval": 2,
    }
    train(**flags, output=tmp_path / "whole")
    again(tmp_path / "whole", tmp_path / "again", "epoch-0_step-2")
    train(**flags, output=tmp_path / "again", load_checkpoint="latest")
    assert same(weights(tmp_path / "again"), weights(tmp_path / "whole"))
    train(max_steps=6, output=tmp_path / "free")
    text = torch.randint(0, OLD_ROWS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    before, kept, free = (
        engine_of(path).causal(text).logits[..., :OLD_ROWS].log_softmax(-1).detach()
        for path in (tiny_model, *(tmp_path / name / "modeling" for name in ("whole", "free")))
    )
    near, far = ((before.exp() * (before - after)).sum(-1).mean() for after in (kept, free))
    assert near < 0.8 * far


def test_only_new_rows_learn_from_the_source_too(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    retention = RetentionOptions(distill_from_source=1.0)
    train(trainable="new-embeddings", max_steps=2, retention=retention)
    start, end = load_file(tiny_model / "model.safetensors")[TABLE], weights(tmp_path / "run")[TABLE]
    assert torch.equal(start[:OLD_ROWS], end[:OLD_ROWS])
    assert not torch.equal(start[OLD_ROWS:ROWS], end[OLD_ROWS:ROWS])


def test_a_source_that_the_model_does_not_extend_is_refused(
    train: Train, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_tiny_model(tmp_path / "source")
    words = json.loads((source / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[60:62]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (source / "tokenizer.json").write_text(json.dumps(words))
    (source / "llmforge.json").unlink()
    retention = RetentionOptions(distill_from_source=1.0, source_model=source)
    with pytest.raises(UserError, match=r"does not extend its tokenizer \(id 60 of the 300 old ids"):
        train(retention=retention)
    (tmp_path / "empty").mkdir()
    retention = RetentionOptions(distill_from_source=1.0, source_model=tmp_path / "empty")
    with pytest.raises(UserError, match=r"--source-model .* is not a Hugging Face model directory"):
        train(retention=retention)
    with pytest.raises(UsageError, match=r"--source-model has no effect without --distill-from-source"):
        train(retention=RetentionOptions(source_model=source))


def test_another_source_is_another_run(
    train: Train, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = (make_tiny_model(tmp_path / f"source-{seed}", seed=seed) for seed in (1, 2))
    flags: dict[str, Any] = {"max_steps": 2, "save_interval": 1}
    train(**flags, retention=RetentionOptions(distill_from_source=1.0, source_model=one))
    other = RetentionOptions(distill_from_source=1.0, source_model=two)
    with pytest.raises(UserError, match=r"is finished, but"):
        train(**flags, retention=other)
    (tmp_path / "run" / "llmforge.json").unlink()
    with pytest.raises(UserError, match=r"belongs to a run with another source"):
        train(**flags, retention=other, load_checkpoint="latest")


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
        (
            {"protect_source": [Path("x")], "trainable": "embeddings"},
            r"--protect-source contradicts --trainable emb",
        ),
        (
            {"protect_source": [Path("x")], "plugin": "gemini"},
            r"--protect-source contradicts --plugin gemini",
        ),
        ({"protect_share": 0.2}, r"--protect-share has no effect without --protect-source"),
        (
            {"protect_source": [Path("x")], "protect_share": 1.2},
            r"--protect-share 1.2: must be between 0 and 1",
        ),
        ({"l2_to_start": -0.1}, r"--l2-to-start -0.1: must be at least 0"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(TrainOptions, {"model": tmp_path, "data": [tmp_path], "output": tmp_path / "run", **flags})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--l2-to-start", 20), ("--distill-from-source", 2), ("--protect-source",)]
)
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
    common += [tiny_data] * (options == ("--protect-source",))
    alone = ("--gradient-accumulation-steps", 2)
    llmforge("train", *common, *alone, "--output", tmp_path / "one")
    two_processes(*common, "--plugin", "fsdp", "--output", tmp_path / "two")
    again(tmp_path / "two", tmp_path / "again", "epoch-0_step-2")
    llmforge("train", *common, *alone, "--output", tmp_path / "again", "--load-checkpoint", "latest")
    one = weights(tmp_path / "one")
    for name in ("two", "again"):
        other = weights(tmp_path / name)
        assert max((one[key] - other[key]).abs().max() for key in one) < 2e-4
