"""`--ema`: the average of the weights after every step, to the last bit, wherever it lies and however the run went on."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmforge.backends.torch.average import Average
from llmforge.backends.torch.engine import NativeEngine
from llmforge.errors import UsageError, UserError
from llmforge.options import make
from llmforge.train.options import TrainOptions
from llmforge.train.retention import RetentionOptions
from llmforge.weights.export import export
from llmforge.weights.options import FormatOptions

Train = Callable[..., Any]
DECAY = 0.7
EMA = RetentionOptions(ema=DECAY)


def read(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def averaged(start: Path, save_dir: Path, steps: list[str]) -> dict[str, torch.Tensor]:
    """The average of the checkpoints `steps`, by the plain formula."""
    mean = read(start)
    for step in steps:
        weights = read(save_dir / step / "modeling")
        mean = {name: mean[name].lerp(weights[name], 1 - DECAY) for name in mean}
    return mean


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("trainable", ["all", "new-embeddings,1"])
def test_it_is_the_average_of_every_step(
    trainable: str, train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    train(max_steps=4, save_interval=1, retention=EMA, trainable=trainable)
    steps = [f"epoch-0_step-{number}" for number in range(1, 5)]
    for number in range(1, 5):
        expected = averaged(tiny_model, tmp_path / "run", steps[:number])
        assert same(read(tmp_path / "run" / steps[number - 1] / "ema"), expected)
    assert same(read(tmp_path / "run" / "ema"), expected)
    assert not same(read(tmp_path / "run" / "ema"), read(tmp_path / "run" / "modeling"))


def test_the_training_itself_is_not_changed(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, output=tmp_path / "without")
    train(max_steps=3, output=tmp_path / "with", retention=EMA)
    assert same(read(tmp_path / "with" / "modeling"), read(tmp_path / "without" / "modeling"))
    assert not (tmp_path / "without" / "ema").exists()


def test_a_step_that_is_skipped_does_not_count(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    """With --max-bad-steps in reach, a spike threshold that skips nearly every step after the first 20."""
    train(
        num_epochs=3,
        max_steps=30,
        save_interval=1,
        retention=EMA,
        on_spike="skip",
        spike_threshold=0.1,
        seed=3,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not all(line["applied"] for line in lines)
    names = {line["step"]: f"epoch-{line['epoch']}_step-{line['step']}" for line in lines}
    steps = [names[line["step"]] for line in lines if line["applied"]]
    assert same(read(tmp_path / "run" / "ema"), averaged(tiny_model, tmp_path / "run", steps))


def test_a_resume_gives_the_same_bits(train: Train, tmp_path: Path) -> None:
    train(max_steps=6, save_interval=2, retention=EMA, output=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("epoch-0_step-4", "epoch-0_step-6", "modeling", "ema"):
        shutil.rmtree(tmp_path / "again" / name)
    (tmp_path / "again" / "llmforge.json").unlink()
    train(max_steps=6, save_interval=2, retention=EMA, output=tmp_path / "again", load_checkpoint="latest")
    for name in ("modeling", "ema"):
        assert same(read(tmp_path / "whole" / name), read(tmp_path / "again" / name))


def held_out(save_dir: Path, name: str = "holdout_bits_per_byte") -> dict[int, float]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name]["all"] for line in lines if name in line}


def test_it_is_measured_beside_the_weights_and_changes_nothing(
    train: Train, tiny_data: Path, tmp_path: Path
) -> None:
    """The figures are those of the model directory `ema`; steps and checkpoints are those of a run that measures nothing."""
    common = {"max_steps": 4, "retention": EMA, "save_interval": 2, "learning_rate": 3e-2}
    train(**common, output=tmp_path / "silent")
    train(**common, eval_data=[tiny_data], eval_interval=2)
    for name in ("modeling", "ema", "epoch-0_step-2/modeling", "epoch-0_step-2/ema"):
        assert same(read(tmp_path / "run" / name), read(tmp_path / "silent" / name))
    weights, average = (held_out(tmp_path / "run", f"{p}holdout_bits_per_byte") for p in ("", "ema_"))
    assert (list(weights), list(average)) == ([0, 2, 4], [2, 4])
    for step, model in ((2, "epoch-0_step-2/ema"), (4, "ema")):
        again = tmp_path / f"again-{step}"
        train(model=tmp_path / "run" / model, eval_data=[tiny_data], max_steps=1, output=again)
        assert held_out(again)[0] == average[step] != weights[step]


def test_a_stop_while_it_is_measured_gives_the_same_bits(
    train: Train, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {
        "max_steps": 4,
        "retention": EMA,
        "save_interval": 0,
        "eval_data": [tiny_data],
        "eval_interval": 2,
    }
    train(**common, output=tmp_path / "whole")
    averaged, asked = NativeEngine.averaged, list[bool]()

    @contextmanager
    def stop(self: NativeEngine) -> Iterator[None]:
        with averaged(self):
            if not asked:
                os.kill(os.getpid(), signal.SIGTERM)
            asked.append(True)
            yield

    monkeypatch.setattr(NativeEngine, "averaged", stop)
    stopped = train(**common)
    assert (stopped.step, stopped.reason) == (2, "SIGTERM")
    assert list(held_out(tmp_path / "run")) == [0]
    train(**common, load_checkpoint="latest")
    for name in ("modeling", "ema"):
        assert same(read(tmp_path / "whole" / name), read(tmp_path / "run" / name))
    for name in ("holdout_bits_per_byte", "ema_holdout_bits_per_byte"):
        assert held_out(tmp_path / "run", name) == held_out(tmp_path / "whole", name)


def test_a_rollback_takes_the_average_of_its_checkpoint(
    train: Train, make_spiked: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[dict[str, torch.Tensor]] = []
    found: list[bool] = []
    update, load = Average.update, NativeEngine.load_average

    def record(self: Average) -> None:
        update(self)
        history.append({name: tensor.clone() for name, tensor in self.values.items()})

    def compare(self: NativeEngine, directory: Path) -> None:
        load(self, directory)
        assert self.average is not None
        found.append(same(self.average.values, history[int(directory.parent.name.rpartition("-")[2]) - 1]))
        found.append(not same(self.average.values, history[-1]))

    monkeypatch.setattr(Average, "update", record)
    monkeypatch.setattr(NativeEngine, "load_average", compare)
    train(
        data=[make_spiked()],
        micro_batch_size=1,
        learning_rate=3e-3,
        schedule="constant",
        on_spike="rollback",
        save_interval=10,
        spike_threshold=5.0,
        seed=1,
        max_steps=45,
        retention=EMA,
    )
    assert found
    assert all(found)


def test_a_resume_without_its_state_is_refused(train: Train) -> None:
    train(max_steps=4, save_interval=2, time_limit="0")
    with pytest.raises(UserError, match=r"has no moving average, .* leave out --ema, or start a new stage"):
        train(max_steps=4, save_interval=2, retention=EMA, load_checkpoint="latest")


def test_a_damaged_average_is_a_damaged_checkpoint(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(max_steps=4, save_interval=2, retention=EMA)
    (tmp_path / "run" / "llmforge.json").unlink()
    file = tmp_path / "run" / "epoch-0_step-4" / "ema" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # which may be a link to OUTPUT/ema
    file.write_bytes(data)
    train(max_steps=4, save_interval=2, retention=EMA, load_checkpoint="latest")
    assert "epoch-0_step-4 is skipped" in capsys.readouterr().err


def test_it_is_a_model_like_others(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    """transformers reads it, export writes it, and the next stage starts from it."""
    from transformers import AutoModelForCausalLM

    train(max_steps=2, retention=EMA)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "ema")
    assert torch.equal(
        model.model.embed_tokens.weight, read(tmp_path / "run" / "ema")["model.embed_tokens.weight"]
    )
    export(tmp_path / "run" / "ema", tmp_path / "exported", FormatOptions(verify=True))
    train(model=tmp_path / "run" / "ema", max_steps=1, output=tmp_path / "next")


def test_overwrite_deletes_it_too(train: Train, tmp_path: Path) -> None:
    train(max_steps=1, retention=EMA)
    train(max_steps=1, overwrite=True)
    assert not (tmp_path / "run" / "ema").exists()


def test_adapters_and_other_backends_are_refused(tmp_path: Path) -> None:
    values = {"model": tmp_path, "data": [tmp_path], "output": tmp_path / "run", "ema": 0.9}
    with pytest.raises(UsageError, match=r"--ema contradicts --trainable lora"):
        make(TrainOptions, {**values, "trainable": "lora", "lora_rank": 2})
    with pytest.raises(UsageError, match=r"--ema contradicts --plugin gemini; use native, ddp or fsdp"):
        make(TrainOptions, {**values, "plugin": "gemini"})
    with pytest.raises(UsageError, match=r"--ema 1\.0: must be between 0 and 0.999999"):
        make(TrainOptions, {**values, "ema": 1.0})


def test_the_plan_counts_it(tiny_model: Path, tiny_data: Path, llmforge: Any) -> None:
    words = ("plan", "--model", tiny_model, "--data", tiny_data, "--json")
    without, with_it = (json.loads(llmforge(*words, *more).stdout) for more in ((), ("--ema", "0.99")))
    assert with_it["memory"]["average"] == 4 * with_it["trained_parameters"]
    assert with_it["memory_bytes"] == without["memory_bytes"] + with_it["memory"]["average"]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_two_processes_average_what_they_train(
    plugin: str, tiny_model: Path, tiny_data: Path, two_processes: Any, llmforge: Any, tmp_path: Path
) -> None:
    """And one process continues the average of two."""
    words = [
        *("--model", tiny_model, "--data", tiny_data, "--mixed-precision", "fp32", "--save-interval", 1),
        *("--max-steps", 3, "--micro-batch-size", 2, "--ema", DECAY, "--output", tmp_path / "two"),
        *("--eval-data", tiny_data, "--eval-interval", 1),
    ]
    steps = [f"epoch-0_step-{number}" for number in range(1, 4)]
    two_processes(*words, "--plugin", plugin)
    expected = averaged(tiny_model, tmp_path / "two", steps)
    assert same(read(tmp_path / "two" / "ema"), expected)
    measured = held_out(tmp_path / "two", "ema_holdout_bits_per_byte")
    again = ("--data", tiny_data, "--eval-data", tiny_data, "--max-steps", 1, "--output", tmp_path / "again")
    llmforge("train", "--model", tmp_path / "two" / "ema", *again)
    assert measured[3] == pytest.approx(held_out(tmp_path / "again")[0], abs=1e-5)
    shutil.rmtree(tmp_path / "two" / steps[-1])
    (tmp_path / "two" / "llmforge.json").unlink()
    llmforge("train", *words, "--gradient-accumulation-steps", 2, "--load-checkpoint", "latest")
    assert same(read(tmp_path / "two" / "ema"), averaged(tiny_model, tmp_path / "two", steps))
