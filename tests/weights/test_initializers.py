"""One file adds an embedding initialization: its choice, options, inputs, checks and reports come from it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmforge
from llmforge.embedding.initializers import initializers
from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UsageError
from llmforge.tokenizer import load

from .conftest import NEW_SIZE, OLD_SIZE, TEXTS
from .test_grow import tensors

COUNTED = """
import os
import sys
from dataclasses import dataclass
from llmforge.embedding.initializers.base import Initializer
from llmforge.options import Options, option

@dataclass(frozen=True)
class CountedOptions(Options):
    counted_scale: float = option("For --init counted-rows: what one occurrence weighs.", 1.0, least=0)

class Counted(Initializer):
    text = "the mean of the old rows times its occurrences in --data"
    makes = ("embedding", "head")
    reads_data = resumable = runs_model = True
    options = CountedOptions

    def make(self, context, roles):
        import numpy as np
        state = context.work / "counts.npy"
        if not state.exists():
            print("counting", file=sys.stderr)
            counts = np.zeros(context.target.size, np.int64)
            for texts in context.reader().batches(1000):
                counts += np.bincount(context.target.encode(texts)[0], minlength=len(counts))
            np.save(state, counts)
            if "KILLED" in os.environ:
                os._exit(9)
        counts = np.load(state)[context.source.size:]
        scale = context.options.of(CountedOptions).counted_scale
        means = {role: context.old[role].mean for role in roles}
        rows = {role: (scale * counts[:, None] * mean).astype(np.float32) for role, mean in means.items()}
        return {role: context.given(role, rows[role], counts > 0) for role in roles}

INITIALIZER = Counted()
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command with one more file in its package."""
    package = tmp_path / "src" / "llmforge"
    shutil.copytree(
        Path(llmforge.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    (package / "embedding" / "initializers" / "counted_rows.py").write_text(COUNTED)

    def run(*words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("llmforge"), *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def test_one_file_adds_an_initialization(
    command: Any, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source, corpus = tiny_model("phi"), tmp_path / "corpus.jsonl"  # its head has a bias
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    help_text = " ".join(command("init-model", "--help").stdout.split())
    assert "counted-rows: the mean of the old rows times its occurrences in --data" in help_text
    assert "--counted-scale NUMBER For --init counted-rows: what one occurrence weighs." in help_text
    schema = json.loads(command("run", "--schema").stdout)["$defs"]["init-model"]["properties"]
    for key in ("init", "head-init"):
        assert "counted-rows" in json.dumps(schema[key]["anyOf"])
    assert schema["counted-scale"]["default"] == 1

    words = ["init-model", "--model", source, "--tokenizer", new_tokenizer, "--output", tmp_path / "grown"]
    chosen = [*words, "--init", "counted-rows", "--counted-scale", "0.5"]
    assert "--data are the texts that" in command(*chosen, code=2).stderr
    idle = command(*words, "--init", "mean", "--counted-scale", "0.5", code=2)
    assert "--counted-scale is for --init counted-rows; give both or neither." in idle.stderr

    killed = command(*chosen, "--data", corpus, code=9, KILLED="1")
    assert "counting" in killed.stderr
    assert not (tmp_path / "grown").exists()
    done = command(*chosen, "--data", corpus, "--json")
    assert "counting" not in done.stderr
    assert not (tmp_path / "grown" / ".work").exists()
    record = json.loads((tmp_path / "grown" / "llmforge.json").read_text())
    assert (record["arguments"]["init"], record["arguments"]["counted_scale"]) == ("counted-rows", 0.5)

    ids = np.concatenate([load(new_tokenizer).encode([text])[0] for text in TEXTS[:2]])
    counts = np.bincount(ids, minlength=NEW_SIZE)[OLD_SIZE:]
    known = counts > 0
    assert 0 < known.sum() < len(known)
    assert record["metrics"]["new_rows_by_subtokens_instead"] == {
        "embedding": (~known).sum(),
        "head": (~known).sum(),
        "head_bias": len(known),
    }
    assert f"embedding: {(~known).sum()} new tokens are unknown to counted-rows" in done.stderr
    old, new = tensors(source), tensors(tmp_path / "grown")
    resize(source, new_tokenizer, tmp_path / "plain", ResizeOptions())
    plain = tensors(tmp_path / "plain")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = new[name][OLD_SIZE:NEW_SIZE]
        np.testing.assert_allclose(rows[known], 0.5 * counts[known, None] * old[name].mean(0), atol=1e-5)
        assert (rows[~known] == plain[name][OLD_SIZE:NEW_SIZE][~known]).all()
    assert (new["lm_head.bias"] == plain["lm_head.bias"]).all()

    other = command(
        *words[:-1], tmp_path / "other", "--init", "mean", "--head-init", "subtoken-mean", "--json"
    )
    assert "counted_scale" not in json.loads(other.stdout)["arguments"]  # it decides nothing there


def test_listing_them_imports_neither_numpy_nor_torch() -> None:
    code = "import sys, llmforge.embedding.options; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_head_and_embedding_by_rules_of_their_own(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    made = {}
    for name, head in (("mean", "subtoken-mean"), ("subtoken-mean", "mean"), ("mean", "same")):
        output = tmp_path / f"{name}-{head}"
        resize(source, new_tokenizer, output, ResizeOptions(init=name, head_init=head))
        made[name, head] = tensors(output)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert (made["mean", "subtoken-mean"][embedding] == made["mean", "same"][embedding]).all()
    assert (made["subtoken-mean", "mean"][head] == made["mean", "same"][head]).all()
    assert (made["mean", "subtoken-mean"][head] != made["mean", "same"][head]).any()


def test_what_is_chosen_decides_which_inputs_and_options_there_are(tmp_path: Path) -> None:
    assert list(initializers()) == [
        "align",
        "distill",
        "donor",
        "first-subtoken",
        "focus",
        "gaussian",
        "linear",
        "mean",
        "subtoken-mean",
    ]
    ResizeOptions(head_init="align").check_inputs([tmp_path], None)
    with pytest.raises(
        UsageError,
        match="--data are the texts that --init align and --init distill and --init focus learn from",
    ):
        ResizeOptions(head_init="align").check_inputs([], None)
    with pytest.raises(UsageError, match="--donor is the model that --init donor learns from; give both"):
        ResizeOptions().check_inputs([], tmp_path)
    with pytest.raises(UsageError, match="--init first-subtoken: must be one of align, distill, donor"):
        ResizeOptions(init="first-subtoken")
