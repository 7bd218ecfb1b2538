"""`score-data`: the bits per byte of every document, as `evaluate` has them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TEXTS = [
    "The cat sat on the mat.",
    "今天天气很好。",
    "short",
    "a longer text about birds and rings, and more of it",
]


def scored(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in sorted(directory.glob("*.jsonl")) for line in file.open(encoding="utf-8")
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    lines = [{"source": "a: ", "target": TEXTS[0], "category": "en"}, *({"text": text} for text in TEXTS[1:])]
    lines.insert(2, {"text": "   "})
    (tmp_path / "in" / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "in" / "t.txt").write_text("a text file")
    return tmp_path / "in"


def test_scores_are_those_of_evaluate(llmforge: Any, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    command = ("score-data", "--model", tiny_model, "--data", data, "--output", tmp_path / "out")
    done = llmforge(*command)
    assert "5 documents" in done.stdout
    found = scored(tmp_path / "out")
    assert [one["target"] for one in found] == [*TEXTS, "a text file"]
    assert found[0]["source"] == "a: "
    assert found[0]["category"] == "en"
    llmforge(
        *("evaluate", "--model", tiny_model, "--data", f"all={data}", "--per-document"),
        *("--output", tmp_path / "table.json"),
    )
    ((_, by_label),) = json.loads((tmp_path / "table.json").read_text()).items()
    bits, sizes = by_label["all"]["document_bits"], by_label["all"]["document_bytes"]
    assert [one["bits_per_byte"] for one in found] == pytest.approx(
        [b / n for b, n in zip(bits, sizes, strict=True)], abs=1e-5
    )
    assert "already done" in llmforge(*command).stdout
    # What it writes is what prepare-data orders by.
    llmforge(
        *(
            "prepare-data",
            "--data",
            tmp_path / "out",
            "--tokenizer",
            tiny_model,
            "--output",
            tmp_path / "packed",
        ),
        *("--order", "easy-to-hard", "--bins", 2, "--max-length", 64),
    )


def test_two_models_and_their_difference(llmforge: Any, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model)).save_pretrained(other)
    llmforge("score-data", "--model", tiny_model, other, "--data", data, "--output", tmp_path / "both")
    llmforge("score-data", "--model", other, "--data", data, "--output", tmp_path / "one")
    both, one = scored(tmp_path / "both"), scored(tmp_path / "one")
    for a, b in zip(both, one, strict=True):
        assert a["bits_per_byte_2"] == pytest.approx(b["bits_per_byte"], abs=1e-5)
        assert a["bits_per_byte_difference"] == pytest.approx(
            a["bits_per_byte"] - a["bits_per_byte_2"], abs=2e-6
        )
    done = llmforge(
        *("score-data", "--model", tiny_model, other, tiny_model, "--data", data, "--output", tmp_path / "x"),
        code=2,
    )
    assert "one model, or two" in done.stderr


def test_bad_lines_are_counted_and_too_many_refused(
    llmforge: Any, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    with (data / "d.jsonl").open("a") as file:
        file.write("no json\n")
    done = llmforge("score-data", "--model", tiny_model, "--data", data, "--output", tmp_path / "out", code=1)
    assert "line 6: broken JSON" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_scored_is_not_scored_again(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmforge.evaluate import bits
    from llmforge.evaluate.options import ScoreDataOptions
    from llmforge.evaluate.scoring import score_data

    shutil.copy(data / "d.jsonl", data / "e.jsonl")
    measured: list[str] = []
    real = bits.measure

    def counting(loaded: Any, corpus: Any, *rest: Any) -> Any:
        measured.append(corpus.label)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(loaded, corpus, *rest)

    monkeypatch.setattr(bits, "measure", counting)
    options = ScoreDataOptions(model=[tiny_model], data=[data], output=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        score_data(options)
    assert score_data(options).manifest.metrics["documents"] == 9
    assert len(measured) == 4  # three chunks, of which the second was begun twice
