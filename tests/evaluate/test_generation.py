"""Generation: what is drawn, where it ends, and that neither batches nor streams change it."""

import json
from dataclasses import replace

import pytest
import torch

from llmforge.cli.generate import write_part
from llmforge.errors import UsageError, UserError
from llmforge.evaluate.generation import _Draw, _processors, check_positions, continue_ids, text_after
from llmforge.evaluate.models import load_model
from llmforge.evaluate.options import GenerateOptions, SamplingOptions
from llmforge.evaluate.prompts import read_prompts
from llmforge.evaluate.streaming import TextStream, visible

TEXTS = ("the cat", "一只猫", "the rat ate the hat and then", "x")


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def prompts(loaded):
    return [[0, *loaded.tokenizer.encode([text])[0].tolist()] for text in TEXTS]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_follows_a_prompt_does_not_depend_on_the_prompts_beside_it(
    loaded, prompts, temperature, penalty
):
    sampling = SamplingOptions(max_new_tokens=12, temperature=temperature, repetition_penalty=penalty, seed=3)
    together = continue_ids(loaded, prompts, sampling)
    alone = [continue_ids(loaded, [one], sampling, [3 + i])[0] for i, one in enumerate(prompts)]
    assert together == alone
    assert all(token < loaded.tokenizer.size for row in together for token in row)


def test_draws_follow_the_distribution_and_the_seed():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    scores = probabilities.log().repeat(4000, 1)
    drawn = _Draw(range(4000))(torch.zeros(4000, 1), scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(shares, probabilities, atol=0.03)
    assert shares[4] == 0
    assert torch.equal(_Draw(range(4000))(torch.zeros(4000, 1), scores).argmax(-1), drawn)


@pytest.mark.parametrize(
    ("narrow", "left"),
    [({}, 4), ({"top_p": 0.6}, 2), ({"top_k": 3}, 3), ({"min_p": 0.2}, 3), ({"min_p": 0.5, "top_k": 3}, 2)],
)
def test_filters_leave_the_tokens_that_they_are_named_for(narrow, left):
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for one in list(_processors(SamplingOptions(temperature=1.0, **narrow), [0]))[:-1]:
        scores = one(torch.zeros(1, 1, dtype=torch.int64), scores)
    assert torch.isfinite(scores)[0].tolist() == [True] * left + [False] * (4 - left)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_filters_that_leave_one_token_take_the_most_likely_one(loaded, prompts, narrow):
    greedy = continue_ids(loaded, prompts[:1], SamplingOptions(max_new_tokens=8))
    hot = SamplingOptions(max_new_tokens=8, temperature=2.0)
    assert continue_ids(loaded, prompts[:1], hot) != greedy
    assert continue_ids(loaded, prompts[:1], replace(hot, **narrow)) == greedy


def test_a_penalty_on_repetition_leads_to_other_tokens(loaded, prompts):
    def different(penalty):
        return len(
            set(
                continue_ids(
                    loaded, prompts[:1], SamplingOptions(max_new_tokens=24, repetition_penalty=penalty)
                )[0]
            )
        )

    assert different(50.0) > different(1.0)


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(loaded, prompts):
    sampling = SamplingOptions(max_new_tokens=24, temperature=1.0, seed=5)
    whole = text_after(loaded, prompts[0], continue_ids(loaded, prompts[:1], sampling)[0])
    stop = whole[4:6]
    new = continue_ids(loaded, prompts[:1], replace(sampling, stop=[stop, "never"]))[0]
    assert len(new) < 24
    assert visible(text_after(loaded, prompts[0], new), [stop]) == whole[: whole.index(stop)]


@pytest.mark.parametrize("stop", [[], ["at"], ["e r"]])
def test_a_stream_gives_the_text_in_whole_characters_and_holds_a_stop_string_back(loaded, prompts, stop):
    parts: list[str] = []
    stream = TextStream(loaded, prompts[1], stop, parts.append)
    text = "然后 the cat ate the rat 🐀!"
    for token in [*loaded.tokenizer.encode([text])[0].tolist(), loaded.tokenizer.eos_id, 5]:
        stream.put(token)
        assert visible(text, stop).startswith("".join(parts))
    assert stream.finish() == "".join(parts) == visible(text, stop)
    assert len(parts) > 3


def test_a_model_without_an_end_goes_on_to_the_last_token(tiny_model, prompts):
    loaded = load_model(tiny_model)
    loaded.model.generation_config.eos_token_id = None
    loaded = replace(loaded, tokenizer=replace(loaded.tokenizer, eos_id=None))
    sampling = SamplingOptions(max_new_tokens=9, temperature=1.0)
    assert [len(row) for row in continue_ids(loaded, prompts, sampling)] == [9] * len(prompts)


def test_more_tokens_than_positions_are_refused(loaded):
    with pytest.raises(
        UserError, match="more than the 256 positions of tiny-llama; give at most --max-new-tokens 6"
    ):
        check_positions(loaded, 250, 10)
    with pytest.raises(UserError, match="shorten it"):
        check_positions(loaded, 300, 10)


def test_generated_text_reaches_the_terminal_without_control_characters(capsys):
    write_part("\x1b]0;title\x07 red\x1b[31m\n")
    assert capsys.readouterr().out == "\\x1b]0;title\\x07 red\\x1b[31m\n"


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.txt")] == ["one", "two"]
    for name, content, sentence in (
        (
            "a.jsonl",
            '{"prompt": "a"}\n{"text": "b"}\n',
            "a.jsonl, line 2: there is no text in the field 'prompt'",
        ),
        ("b.txt", "\n", "there is no prompt in it"),
        ("c.doc", "x", "the name must end in .txt, .csv"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=sentence):
            read_prompts(tmp_path / name)
    for words in ({}, {"prompt": "a", "prompts": tmp_path / "a.txt"}):
        with pytest.raises(UsageError, match="give one of --prompt"):
            GenerateOptions(model=tmp_path, **words)


def test_a_file_of_prompts_is_continued_record_by_record(llmforge, tiny_model, tmp_path):
    records = [{"id": i, "prompt": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    words = ["generate", "--model", tiny_model, "--prompts", tmp_path / "a.jsonl", "--max-new-tokens", 6]
    words += ["--temperature", 1, "--top-k", 50, "--min-p", 0.01]
    out = tmp_path / "out.jsonl"
    llmforge(*words, "--output", out)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{"id": one["id"], "prompt": one["prompt"]} for one in made] == records
    assert all(isinstance(one["completion"], str) for one in made)
    small = llmforge(*words, "--batch-tokens", 1).stdout.splitlines()
    assert [json.loads(line) for line in small] == made
    assert "must end in .jsonl" in llmforge(*words, "--output", tmp_path / "out.txt", code=2).stderr
