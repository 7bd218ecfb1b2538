"""The runner, with the real commands on a tiny model."""

import json
import os
import signal
import time

import pytest
from experiments.arms import MEASURED, Arm
from experiments.bases import BASES
from experiments.data import CHINESE, ENGLISH
from experiments.flops import distillation_flops
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode

from experiments import run
from llmforge.embedding.initializers.distill import DistillOptions
from llmforge.embedding.options import InitializerOptions, ResizeOptions
from llmforge.embedding.resize import resize

TEXTS = dict.fromkeys(CHINESE, "一只猫坐在垫子上，老鼠吃了帽子。") | dict.fromkeys(
    ENGLISH, "the cat sat on the mat"
)


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_tokenizer):
    """The experiment in `tmp_path` with texts of a few sentences and rows of 64 tokens."""
    for folder in ("train", "held"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name, text in TEXTS.items():
            lines = [{"target": f"{text} {number} {text}", "category": name} for number in range(40)]
            (tmp_path / "data" / folder / f"{name}.jsonl").write_text(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
            )
    monkeypatch.setattr(run, "make", lambda: tmp_path / "data")
    monkeypatch.setattr(run, "make_tokenizer", lambda _: tiny_tokenizer)
    for name, value in {"HOME": tmp_path, "ROW": 64, "WARMUP": 2, "DOCUMENTS": 3}.items():
        monkeypatch.setattr(run, name, value)
    return tmp_path


def figures(results):
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["part"]: (line["held"], line["flops"], line["steps"]) for line in lines}, len(lines)


@pytest.mark.slow
def test_an_arm_that_was_killed_goes_on_and_measures_every_point_once(small, tiny_model):
    arm = Arm(
        *("grown", "5M", 1e-2, 12),
        first_parts=2,
        first_trainable="new-embeddings",
        first_learning_rate=1e-2,
        budget=2e9,
    )
    results = small / "results.jsonl"
    child = os.fork()
    if not child:
        run.run_arm(arm, tiny_model, results)
        os._exit(0)
    stage = run.home_of(arm) / "arms" / "grown" / "stage-2"
    deadline = time.monotonic() + 300
    while not any(stage.glob("epoch-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    before = (stage / "metrics.jsonl").read_text().splitlines()[0]
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert figures(results)[1] == 1  # the start alone
    first = stage.with_name("stage-1.cpu").stat()
    run.run_arm(arm, tiny_model, results)
    run.run_arm(arm, tiny_model, results)  # nothing is left to do
    points, count = figures(results)
    assert sorted(points) == list(MEASURED)
    assert count == len(MEASURED)
    assert points[8][1] == pytest.approx(arm.budget, rel=0.1)
    assert points[8][0]["news"]["bits_per_byte"] < points[0][0]["news"]["bits_per_byte"]
    assert stage.with_name("stage-1.cpu").stat() == first
    assert stage.with_name("stage-2.metrics.jsonl").read_text().splitlines()[0] == before  # with its seconds
    assert not stage.exists()


def test_an_untied_base_is_the_same_model(small, tiny_model):
    made = run.untied(tiny_model, small / "untied")
    assert run.read_config(made)["tie_word_embeddings"] is False
    one, other = run.measure([tiny_model, made], small / "both.json")
    assert one == other


@pytest.mark.slow
def test_an_arm_whose_time_is_over_keeps_what_it_has_trained(small, tiny_model):
    arm, results = Arm("un-grown", "5M", 1e-2, budget=1e11), small / "results.jsonl"
    run.run_arm(arm, tiny_model, results, ends=time.monotonic() + 1)
    stage = run.home_of(arm) / "arms" / "un-grown" / "stage-1"
    assert any(stage.glob("epoch-*_step-*"))
    assert not stage.with_name("stage-1.cpu").exists()
    assert set(figures(results)[0]) <= {0, 1, 2, 4}


@pytest.mark.slow
def test_flops_of_distilled_rows_are_what_torch_counts(small, tiny_model, tiny_tokenizer):
    tokenizer, _ = run.prepare_texts(BASES["5M"], 12)
    methods = InitializerOptions(distill=DistillOptions(distill_tokens=400))
    with FlopCounterMode(display=False) as counter:
        texts = [small / "data" / "train" / "news.jsonl"]
        resize(
            tiny_model,
            tokenizer,
            small / "grown",
            ResizeOptions(init="distill", untie=True, methods=methods),
            corpus=texts,
        )
    old, new = (
        len(Tokenizer.from_file(str(one / "tokenizer.json")).encode(TEXTS["news"]).ids)
        for one in (tiny_tokenizer, tokenizer)
    )
    rows, config = run.manifest(small / "grown")["outputs"]["vocabulary"], run.read_config(tiny_model)
    counted = distillation_flops(
        config, rows["source"], rows["size"] - rows["source"], old / new, {"distill-tokens": 400}
    )
    assert 0.7 < counter.get_total_flops() / counted < 1.4  # torch counts pairs that are not causal
