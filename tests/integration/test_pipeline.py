"""The whole pipeline on a real model, through the installed command, with a few steps of training.

What the demo shows in ten minutes is checked here in one or two: that the steps fit together, that finished ones are
recognized, and that the model which comes out is the one that was trained.
"""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory, real_input):
    """The inputs of a small run: the first paragraphs of the demo's texts."""
    work = tmp_path_factory.mktemp("pipeline")
    for name, lines in (("zh", 3000), ("en", 600)):
        (work / "corpus" / name).mkdir(parents=True)
        with (real_input("demo") / "train" / f"{name}.jsonl").open(encoding="utf-8") as file:
            head = [next(file) for _ in range(lines)]
        (work / "corpus" / name / "a.jsonl").write_text("".join(head), encoding="utf-8")
    return work


def command(name, **flags):
    """A command line: `save_dir="x"` as `--save-dir x`."""
    return [name, *(word for flag, value in flags.items() for word in (f"--{flag.replace('_', '-')}", value))]


@pytest.fixture(scope="module")
def commands(work, real_input):
    source, pieces, tokenizer, grown, data = (
        real_input("smollm2"),
        *(work / name for name in ("pieces.jsonl", "tokenizer", "grown", "data")),
    )
    few = {"dataset": data, "max_steps": 2, "micro_batch_size": 2, "lr": 5e-3}
    return [
        command(
            "learn-pieces",
            source_tokenizer_dir=source,
            corpus=work / "corpus" / "zh",
            num_pieces=400,
            output=pieces,
        ),
        command(
            "init-tokenizer",
            source_tokenizer_dir=source,
            expand_tokens_file=pieces,
            target_tokenizer_dir=tokenizer,
        ),
        command(
            "init-model",
            source_model_and_tokenizer_path=source,
            target_tokenizer_path=tokenizer,
            target_model_path=grown,
        ),
        command(
            "prepare-data",
            data_input_dirs=f"{work / 'corpus' / 'zh'},{work / 'corpus' / 'en'}",
            tokenizer_dir=tokenizer,
            data_output_dir=data,
            max_length=128,
            num_spliced_dataset_bins=2,
        ),
        command("train", pretrained=grown, save_dir=work / "stage-1", trainable="new-embeddings", **few),
        command("train", pretrained=work / "stage-1" / "modeling", save_dir=work / "stage-2", seed=7, **few),
        command("export", checkpoint=work / "stage-2", output_dir=work / "export"),
    ]


@pytest.fixture(scope="module")
def done(commands, llmforge):
    return [llmforge(*words) for words in commands]


def test_every_step_leaves_a_manifest_that_names_its_inputs(done, work):
    for name, step in (
        ("tokenizer", "init-tokenizer"),
        ("grown", "init-model"),
        ("data", "prepare-data"),
        ("export", "export"),
    ):
        manifest = json.loads((work / name / "llmforge.json").read_text(encoding="utf-8"))
        assert manifest["step"] == step
        assert manifest["inputs"]
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_finished_steps_are_recognized(done, commands, llmforge):
    for words in commands:
        assert "already done" in llmforge(*words).stdout


def test_the_exported_model_is_the_trained_one(done, work, run_python):
    """`transformers` alone, in a process of its own, against the weights as the training process held them."""
    code = f"""
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(work / "export")!r})
exported = AutoModelForCausalLM.from_pretrained({str(work / "export")!r}, dtype=torch.float32)
trained = AutoModelForCausalLM.from_pretrained({str(work / "stage-2" / "modeling")!r}, dtype=torch.float32)
ids = tokenizer("新华社北京一月一日电 The state of the Union", return_tensors="pt")["input_ids"]
assert exported.config.vocab_size == len(tokenizer) == 49152 + 400, (exported.config.vocab_size, len(tokenizer))
with torch.no_grad():
    difference = (exported(ids).logits - trained(ids).logits[..., :len(tokenizer)]).abs().max().item()
assert difference <= 1e-4, difference
text = tokenizer.decode(tokenizer("中国人民 and friends")["input_ids"])
assert text == "中国人民 and friends", text
"""
    run_python(code)


def test_stage_1_moved_new_rows_alone(done, work):
    from safetensors.torch import load_file

    before, after = (
        load_file(str(work / name / "model.safetensors")) for name in ("grown", "stage-1/modeling")
    )
    rows = "model.embed_tokens.weight"
    for name, tensor in after.items():
        same = tensor == before[name].float()
        assert bool(same[:49152].all()) if name == rows else bool(same.all())
    assert not bool((after[rows] == before[rows].float())[49152:49552].all(dim=1).any())


def test_no_document_lost_a_token(done, work):
    ledger = json.loads((work / "data" / "llmforge.json").read_text(encoding="utf-8"))["metrics"]["ledger"]
    assert ledger["read"]["documents"] == 3600
    for unit in ("documents", "tokens"):
        assert ledger["read"][unit] == ledger["written"][unit]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: ["--num-pieces", "401"]}, "--overwrite"),
        ({2: ["--target-tokenizer-path", "nowhere"]}, "nowhere does not exist"),
        ({4: ["--dataset", "nowhere"]}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(done, commands, llmforge, work, change, sentence):
    ((index, words),) = change.items()
    changed = list(commands[index])
    changed[changed.index(words[0]) + 1] = words[1]
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert sentence in llmforge(*changed, code=1).stderr
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_model_that_does_not_fit_the_dataset_is_refused(done, llmforge, work, real_input, tmp_path):
    words = [
        "--pretrained",
        real_input("smollm2"),
        "--dataset",
        work / "data",
        "--save-dir",
        tmp_path / "out",
    ]
    assert "another tokenizer" in llmforge("train", *words, code=1).stderr
    assert not (tmp_path / "out").exists()
