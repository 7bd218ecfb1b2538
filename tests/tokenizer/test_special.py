"""`init-tokenizer --special-tokens` and `--chat-template`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from llmforge.tokenizer import load

NAMES = ["<|im_start|>", "<|im_end|>"]
TEXTS = ["Plain text, 1998.", "今天天气很好", "  <|im_start|> is text", "a\n\nb"]


@pytest.mark.parametrize("name", ["mistral", "gpt2", "deepseek"])
def test_special_tokens_stand_behind_old_ids_and_change_no_text(
    llmforge: Any, real_input: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    source = load(real_input(name))
    output = tmp_path / "out"
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text(json.dumps({"piece": "天气很好哟"}) + "\n")
    llmforge(
        *("init-tokenizer", "--tokenizer", source.directory, "--special-tokens", ",".join(NAMES)),
        *("--chat-template", "chatml", "--pieces", pieces, "--output", output),
    )
    grown = load(output)
    ids = [grown.pieces().index(token) for token in NAMES]
    assert ids == [source.size, source.size + 1]
    assert set(ids) <= grown.special_ids
    for text in TEXTS:
        if "今天" not in text:
            assert grown.encode([text])[0].tolist() == source.encode([text])[0].tolist()
    theirs = transformers.AutoTokenizer.from_pretrained(output)
    assert theirs.convert_tokens_to_ids(NAMES) == ids
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    assert theirs(text, add_special_tokens=False)["input_ids"].count(ids[1]) == 2


def test_special_tokens_that_cannot_be(llmforge: Any, byte_level: Path, tmp_path: Path) -> None:
    def refused(*more: object, code: int = 1) -> str:
        command = ("init-tokenizer", "--tokenizer", byte_level, "--output", tmp_path / "out")
        return str(llmforge(*command, *more, code=code).stderr)

    assert "nothing to add" in refused(code=2)
    assert "as an ordinary token" in refused("--special-tokens", "a")
    assert "control characters" in refused("--special-tokens", "a\tb")
    assert "does not exist" in refused("--chat-template", "nothing.jinja")
    assert not (tmp_path / "out").exists()


def test_special_tokens_alone_are_recognized_as_done(llmforge: Any, byte_level: Path, tmp_path: Path) -> None:
    command = ["init-tokenizer", "--tokenizer", byte_level, "--special-tokens", ",".join(NAMES)]
    command += ["--chat-template", "chatml", "--output", tmp_path / "out"]
    assert "2 special tokens" in llmforge(*command).stdout
    assert "already done" in llmforge(*command).stdout


def test_a_template_replaces_the_file_of_the_source(llmforge: Any, byte_level: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_level, tmp_path / "source")
    (tmp_path / "source" / "chat_template.jinja").write_text("OLD")
    command = ["init-tokenizer", "--tokenizer", tmp_path / "source", "--chat-template", "chatml"]
    refused = llmforge(*command, "--output", tmp_path / "out", code=1)
    assert "--special-tokens <|im_start|>,<|im_end|>" in refused.stderr
    llmforge(*command, "--special-tokens", ",".join(NAMES), "--output", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = theirs.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert text == "<|im_start|>user\nq<|im_end|>\n"
