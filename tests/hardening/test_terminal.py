"""Terminals as they are: other encodings, closed and full outputs, control characters in what users bring."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.console import printable
from llmforge.report import markdown

COMMAND = [sys.executable, "-m", "llmforge"]


@pytest.fixture
def dataset(llmforge, tiny_tokenizer, tmp_path):
    """A dataset whose documents and categories hold escape sequences and Chinese."""
    text = {"text": "the \x1b[31mcat\x1b]0;title\x07 \x9b2J 猫", "category": "\x1b[5m猫[red]"}
    (tmp_path / "a.jsonl").write_text(json.dumps(text) + "\n")
    llmforge(
        *("prepare-data", "--data-input-dirs", tmp_path / "a.jsonl", "--tokenizer-dir", tiny_tokenizer),
        *("--data-output-dir", tmp_path / "data", "--max-length", 64, "--num-spliced-dataset-bins", 1),
    )
    return tmp_path / "data"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "gbk"])
def test_documents_reach_any_terminal_without_their_escape_sequences(dataset, tiny_tokenizer, encoding):
    done = subprocess.run(
        [*COMMAND, "inspect-data", dataset, "--tokenizer-dir", tiny_tokenizer],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b"\\x1b[31mcat" in done.stdout
    assert b"Traceback" not in done.stderr


def test_json_stays_json_on_a_terminal_without_unicode(dataset, tiny_tokenizer):
    done = subprocess.run(
        [*COMMAND, "inspect-data", dataset, "--tokenizer-dir", tiny_tokenizer, "--json"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert "猫" in str(json.loads(done.stdout))


def test_labels_are_text_in_tables(llmforge, tiny_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    for label in ("[red]x[/red]", "[/x]", "a|b", "\x1b[31m"):
        done = llmforge("compare-tokenizers", tiny_tokenizer, "--corpus", f"{label}={tmp_path / 'a.txt'}")
        assert printable(label) in done.stdout


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tiny_tokenizer, tmp_path, redirection):
    (tmp_path / "p.jsonl").write_text('{"piece": "cathat"}\n')
    words = ["init-tokenizer", "--source-tokenizer-dir", tiny_tokenizer]
    words += ["--expand-tokens-file", tmp_path / "p.jsonl", "--target-tokenizer-dir"]
    for name, how in (("open", ""), ("closed", redirection)):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {how}', "sh", *map(str, [*COMMAND, *words, tmp_path / name])],
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("open", "closed")]
    assert files[0] == files[1]
    for file in files[0]:
        if file != "llmforge.json":
            assert (tmp_path / "open" / file).read_bytes() == (tmp_path / "closed" / file).read_bytes()


def test_a_full_or_closed_output_is_an_error_and_no_traceback(tiny_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    words = [*COMMAND, "compare-tokenizers", tiny_tokenizer, "--corpus", tmp_path / "a.txt", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: no space left on device.\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "generate", "--model", "x"], stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 2  # wrong use, though nobody reads the sentence


@given(st.text())
def test_nothing_printable_is_an_escape_sequence(text):
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)


@given(st.text())
def test_a_markdown_table_keeps_its_shape_whatever_is_in_a_cell(text):
    table = markdown.table(["a", text], [[text, "b"]])
    lines = table.split("\n")
    assert len(lines) == 4
    for line in lines[:3]:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
        assert "<" not in line


@given(st.text(min_size=1))
def test_code_in_markdown_ends_where_it_ends(text):
    shown = markdown.code(text)
    fence = len(shown) - len(shown.lstrip("`"))
    assert "`" * fence not in shown[fence:-fence]
