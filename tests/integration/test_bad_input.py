"""What a user may get wrong: one clear sentence, the right exit code, and nothing written."""

import json
import shutil

import pytest


@pytest.fixture
def place(tmp_path, tiny_tokenizer, tiny_model):
    """A working directory with one small good thing of each kind, and a foreign directory."""
    shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"target": f"the cat sat on mat {i}"}) + "\n" for i in range(200)]
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines))
    (tmp_path / "pieces.jsonl").write_text('{"piece": "the hat"}\n{"piece": "猫"}\n', encoding="utf-8")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("three years of work")
    return tmp_path


def words(place, name, output="out", **changes):
    """The plain command `name` in `place`, some of its flags changed."""
    flags = {
        "learn-pieces": {
            "source-tokenizer-dir": "tokenizer",
            "corpus": "corpus",
            "num-pieces": 5,
            "output": output,
        },
        "init-tokenizer": {
            "source-tokenizer-dir": "tokenizer",
            "expand-tokens-file": "pieces.jsonl",
            "target-tokenizer-dir": output,
        },
        "init-model": {
            "source-model-and-tokenizer-path": "model",
            "target-tokenizer-path": "tokenizer",
            "target-model-path": output,
        },
        "prepare-data": {
            "data-input-dirs": "corpus",
            "tokenizer-dir": "tokenizer",
            "data-output-dir": output,
            "max-length": 64,
        },
        "train": {"pretrained": "model", "dataset": "data", "save-dir": output},
        "export": {"checkpoint": "model", "output-dir": output},
        "evaluate": {"model": "model", "data": "corpus/a.jsonl"},
        "generate": {"model": "model", "prompt": "the cat"},
    }[name] | {key.replace("_", "-"): value for key, value in changes.items()}
    paths = {k: place / v if isinstance(v, str) and k != "prompt" else v for k, v in flags.items()}
    return [name, *(word for key, value in paths.items() for word in (f"--{key}", value))]


def refused(llmforge, place, command, code=1):
    """The sentence of a command that must fail and leave `place` as it was."""
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    sentence = llmforge(*command, code=code).stderr.strip().splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert sentence.startswith("error: ")
    assert "fault of llmforge" not in sentence
    return sentence


INPUT_FLAGS = [
    ("learn-pieces", "source-tokenizer-dir"),
    ("learn-pieces", "corpus"),
    ("init-tokenizer", "source-tokenizer-dir"),
    ("init-tokenizer", "expand-tokens-file"),
    ("init-model", "source-model-and-tokenizer-path"),
    ("init-model", "target-tokenizer-path"),
    ("prepare-data", "data-input-dirs"),
    ("prepare-data", "tokenizer-dir"),
    ("train", "pretrained"),
    ("train", "dataset"),
    ("export", "checkpoint"),
    ("evaluate", "model"),
    ("evaluate", "data"),
    ("generate", "model"),
]


@pytest.mark.parametrize(("name", "flag"), INPUT_FLAGS)
def test_an_input_that_is_not_there_is_named(llmforge, place, name, flag):
    assert "nowhere" in refused(llmforge, place, words(place, name, **{flag: "nowhere"}))


@pytest.mark.parametrize("name", ["learn-pieces", "init-tokenizer", "init-model", "prepare-data", "train"])
def test_a_foreign_directory_is_never_an_output(llmforge, place, name):
    llmforge(*words(place, "prepare-data", output="data"))
    sentence = refused(llmforge, place, [*words(place, name, output="foreign"), "--overwrite"])
    assert "foreign" in sentence
    assert (place / "foreign" / "thesis.tex").read_text() == "three years of work"


@pytest.mark.parametrize("name", ["learn-pieces", "init-tokenizer", "init-model", "prepare-data"])
def test_a_finished_output_of_other_arguments_needs_overwrite(llmforge, place, name):
    changes = {
        "learn-pieces": {"num_pieces": 4},
        "init-tokenizer": {"expand_tokens_file": "other.jsonl"},
        "init-model": {"pad_to_multiple_of": 128},
        "prepare-data": {"max_length": 32},
    }[name]
    (place / "other.jsonl").write_text('{"piece": "a rat"}\n')
    llmforge(*words(place, name))
    assert "already done" in llmforge(*words(place, name)).stdout
    assert "--overwrite" in refused(llmforge, place, words(place, name, **changes))
    llmforge(*words(place, name, **changes), "--overwrite")


@pytest.mark.parametrize("name", ["learn-pieces", "init-tokenizer", "prepare-data"])
def test_a_tokenizer_that_is_neither_bpe_nor_unigram_is_refused(llmforge, place, name):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.save(str(place / "tokenizer" / "tokenizer.json"))
    assert "WordPiece" in refused(llmforge, place, words(place, name))


def test_too_many_broken_lines_are_an_error_that_names_the_first(llmforge, place):
    with (place / "corpus" / "a.jsonl").open("a") as file:
        file.write('{"target": "unfinished\n' * 20)
    sentence = refused(llmforge, place, words(place, "prepare-data"))
    assert "a.jsonl" in sentence
    assert "201" in sentence


def test_one_broken_line_is_counted_and_the_rest_is_kept(llmforge, place):
    with (place / "corpus" / "a.jsonl").open("a") as file:
        file.write('{"target": "unfinished\n')
    llmforge(*words(place, "prepare-data"))
    ledger = json.loads((place / "out" / "llmforge.json").read_text())["metrics"]["ledger"]
    assert (ledger["read"]["documents"], ledger["written"]["documents"]) == (201, 200)
    assert ledger["rejected"]["documents"] == 1


@pytest.mark.parametrize("line", ['{"piece": ', '{"text": "a"}', '{"piece": 7}', '{"piece": ""}', ""])
def test_a_broken_line_of_pieces_is_named(llmforge, place, line):
    (place / "pieces.jsonl").write_text('{"piece": "猫"}\n' + line + "\n", encoding="utf-8")
    assert "pieces.jsonl, line 2" in refused(llmforge, place, words(place, "init-tokenizer"))


@pytest.mark.parametrize("name", ["learn-pieces", "prepare-data"])
def test_an_empty_corpus_is_refused(llmforge, place, name):
    (place / "corpus" / "a.jsonl").write_text("")
    assert "corpus" in refused(llmforge, place, words(place, name))


@pytest.mark.parametrize("name", ["init-model", "evaluate", "generate"])
def test_a_model_with_fewer_rows_than_its_tokenizer_has_ids_is_refused(llmforge, place, name):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(place / "model", vocab_size=257)
    LlamaForCausalLM(config).save_pretrained(place / "model")
    assert "257" in refused(llmforge, place, words(place, name))
