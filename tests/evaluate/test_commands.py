"""evaluate and generate, as a user runs them."""

import json
import shutil

import pytest


def test_evaluate_compares_models_in_a_table(llmforge, tiny_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (tmp_path / "zh.jsonl").write_text(
        '{"source": "一", "target": "只猫"}\n\n{"text": "坐在垫子上"}\n', encoding="utf-8"
    )
    (tmp_path / "en.txt").write_text("the cat sat", encoding="utf-8")
    table = tmp_path / "table.md"
    data = f"zh={tmp_path / 'zh.jsonl'}", tmp_path / "en.txt"
    words = "evaluate", "--model", tiny_model, copy, "--data", *data
    assert "zh bits/byte" in llmforge(*words, "--output", table).stdout
    result = json.loads(llmforge(*words, "--json").stdout)
    assert result["copy"] == result["tiny-llama"]
    assert (result["copy"]["zh"]["characters"], result["copy"]["zh"]["documents"]) == (8, 2)
    assert result["copy"]["en"]["bytes"] == 11
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| model | zh bits/byte | zh tokens/char | en bits/byte | en tokens/char |"
    assert f"{result['copy']['zh']['bits_per_byte']:.4f}" in lines[3]


def test_a_comparison_that_is_done_is_shown_again_and_not_measured_again(llmforge, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat")
    words = ["evaluate", "--model", tiny_model, "--data", tmp_path / "a.txt", "--output", tmp_path / "a.json"]
    first = llmforge(*words)
    stamp = (tmp_path / "a.json").stat().st_mtime_ns
    assert llmforge(*words).stdout == first.stdout
    assert (tmp_path / "a.json").stat().st_mtime_ns == stamp
    assert "--overwrite" in llmforge(*words, "--dtype", "bfloat16", code=1).stderr


def test_documents_and_characters_can_be_limited(llmforge, tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abcdef"}\n' * 5)
    words = (
        "--model",
        tiny_model,
        "--data",
        tmp_path / "a.jsonl",
        "--max-documents",
        3,
        "--max-characters",
        2,
        "--json",
    )
    assert json.loads(llmforge("evaluate", *words).stdout)["tiny-llama"]["a"]["characters"] == 6


def test_figures_of_each_document_are_given_where_they_are_asked_for(llmforge, tiny_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n{"text": "一"}\n', encoding="utf-8")
    words = ["evaluate", "--model", tiny_model, "--data", tmp_path / "a.jsonl", "--json"]
    assert "document_bits" not in json.loads(llmforge(*words).stdout)["tiny-llama"]["a"]
    one = json.loads(llmforge(*words, "--per-document").stdout)["tiny-llama"]["a"]
    assert one["document_bytes"] == [7, 3]
    assert sum(one["document_bits"]) == pytest.approx(one["bits_per_byte"] * 10)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: broken JSON"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl, line 1: 'text' is not text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1: invalid UTF-8"),
        ("a.jsonl", b"\n", "no documents found"),
        ("a.csv", b"a", "is not a readable file"),
    ],
)
def test_wrong_data_is_named(llmforge, tiny_model, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert sentence in llmforge("evaluate", "--model", tiny_model, "--data", tmp_path / name, code=1).stderr


def test_wrong_names_are_refused_before_anything_is_measured(llmforge, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    words = "evaluate", "--model", tiny_model, "--data", tmp_path / "a.txt"
    assert "must end in .json, .md, .html" in llmforge(*words, "--output", tmp_path / "a.pdf", code=2).stderr
    assert "is not a Hugging Face model directory" in llmforge(*words, "--model", tmp_path, code=1).stderr
    for name in ("epoch-0_step-9", "epoch-1_step-10"):
        (tmp_path / name / "modeling").mkdir(parents=True)
        (tmp_path / name / "modeling" / "config.json").write_text("{}")
    inner = tmp_path / "epoch-1_step-10" / "modeling"
    unfinished = llmforge(*words, "--model", tmp_path, code=1).stderr
    assert unfinished.endswith(f"it has no config.json; the model in it is {inner}.\n")
    assert (
        "does not exist"
        in llmforge("evaluate", "--model", tiny_model, "--data", tmp_path / "b.txt", code=1).stderr
    )


def test_a_model_with_too_few_rows_is_refused(llmforge, tiny_model, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = tmp_path / "small"
    shutil.copytree(tiny_model, small)
    config = LlamaConfig.from_pretrained(tiny_model, vocab_size=257)
    LlamaForCausalLM(config).save_pretrained(small)
    done = llmforge("generate", "--model", small, "--prompt", "a", code=1)
    assert "has 257 embedding rows, but the tokenizer" in done.stderr


def test_generation_repeats_with_its_seed_and_stays_in_the_vocabulary(llmforge, tiny_model, tmp_path):
    words = "generate", "--model", tiny_model, "--prompt", "the cat", "--max-new-tokens", 20
    greedy = llmforge(*words).stdout
    assert greedy.startswith("the cat")
    assert llmforge(*words).stdout == greedy
    sampled = [llmforge(*words, "--temperature", 1, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    file = tmp_path / "text.txt"
    assert llmforge(*words, "--output", file).stdout == llmforge(*words, "--output", file).stdout == greedy
    assert file.read_text() == greedy
