"""Damage of equal size: one flipped byte in any file of any output is named, and nothing that was built on it goes on."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmforge.errors import UserError
from llmforge.steps import checksums as remembered
from llmforge.steps import fingerprint, read_manifest, require_whole, verify_output
from llmforge.weights.options import DeltaMakeOptions

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of checksums of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remembered._remembered_lines.cache_clear()
    yield tmp_path / "cache" / "llmforge" / "checksums"
    remembered._remembered_lines.cache_clear()


@pytest.fixture(scope="module")
def outputs(llmforge: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small output of every command, below one directory."""
    from llmforge.dataset.options import PrepareOptions
    from llmforge.dataset.prepare import prepare_data
    from llmforge.embedding.options import ResizeOptions
    from llmforge.embedding.resize import resize
    from llmforge.steps import write_report
    from llmforge.tokenizer.expand import init_tokenizer
    from llmforge.tokenizer.learn import learn_pieces
    from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions
    from llmforge.weights import delta
    from llmforge.weights.export import FormatOptions, export

    place = tmp_path_factory.mktemp("outputs")
    corpus, out = place / "corpus", place / "out"
    corpus.mkdir()
    lines = [json.dumps({"text": f"the tabby cat {i} sat on the tabby mat"}) + "\n" for i in range(300)]
    (corpus / "a.jsonl").write_text("".join(lines))
    learn_pieces(
        LearnPiecesOptions(tokenizer=tiny_model, data=[corpus], output=out / "pieces.jsonl", num_pieces=5)
    )
    init_tokenizer(
        InitTokenizerOptions(tokenizer=tiny_model, output=out / "tokenizer", pieces=out / "pieces.jsonl")
    )
    resize(tiny_model, out / "tokenizer", out / "grown", ResizeOptions())
    prepare_data(PrepareOptions([corpus], out / "tokenizer", out / "data", max_length=64, bins=2, workers=1))
    llmforge(
        *("train", "--pretrained", out / "grown", "--dataset", out / "data", "--save-dir", out / "run"),
        *("--max-steps", 2, "--save-interval", 1, "--mixed-precision", "fp32"),
    )
    export(out / "run", out / "exported", FormatOptions())
    delta.make(DeltaMakeOptions(out / "grown", out / "exported", out / "delta"))
    write_report(out / "report.md", "| a |\n", "compare-tokenizers", "--output")
    return out


@pytest.fixture
def copy(outputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(outputs, tmp_path / "copy"))


def test_a_mistake_leaves_nothing_in_the_cache_directory_of_a_preparation(outputs, tmp_path):
    from llmforge.dataset.options import PrepareOptions
    from llmforge.dataset.prepare import prepare_data

    corpus, cache = tmp_path / "corpus", tmp_path / "work"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text("no JSON\n" * 5)
    options = PrepareOptions([corpus], outputs / "tokenizer", tmp_path / "data", workers=1, cache_dir=cache)
    with pytest.raises(UserError, match="cannot be used"):
        prepare_data(options)
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "data").exists()


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))


def test_what_was_written_is_whole(outputs):
    found = verify_output(outputs)
    assert found.problems == found.by_size == found.unrecorded == []
    kinds = {read_manifest(output).step for output in found.outputs}
    assert kinds >= {
        "learn-pieces",
        "init-tokenizer",
        "init-model",
        "prepare-data",
        "train",
        "train-checkpoint",
    }
    assert kinds >= {"train-model", "export", "delta-make", "compare-tokenizers"}
    assert found.files > 50


def test_one_flipped_byte_in_any_file_of_any_output_is_named(copy):
    files = [file for file in sorted(copy.rglob("*")) if file.is_file() and file.stat().st_size]
    assert len(files) > 60
    for number, file in enumerate(files):
        at = (number * 7919) % file.stat().st_size
        flip(file, at)
        problems = verify_output(copy).problems
        assert problems, f"{file}, byte {at}"
        assert all(str(file) in problem or file.stat().st_nlink > 1 for problem in problems), problems
        assert any(str(file) in problem for problem in problems)
        flip(file, at)
    assert verify_output(copy).problems == []


@pytest.mark.parametrize("change", ["cut", "gone", "grown", "link to nothing", "directory"])
def test_a_file_that_is_no_longer_there_as_it_was_is_named(change, copy):
    file = copy / "exported" / "model.safetensors"
    data = file.read_bytes()
    file.unlink()
    if change == "cut":
        file.write_bytes(data[:-1])
    elif change == "grown":
        file.write_bytes(data + b"\0")
    elif change == "link to nothing":
        file.symlink_to("nowhere")
    elif change == "directory":
        file.mkdir()
    assert str(file) in verify_output(copy / "exported").problems[0]


def test_a_missing_file_with_its_manifest_beside_it_and_a_file_too_many_are_named(copy):
    (copy / "pieces.jsonl").unlink()
    (copy / "data" / "notes.md").write_text("mine")
    found = verify_output(copy)
    assert found.problems == [f"{copy / 'pieces.jsonl'} is missing"]
    assert found.unrecorded == [copy / "data" / "notes.md"]


def test_an_output_of_the_version_before_is_checked_by_size(copy, capsys):
    path = copy / "exported" / "llmforge.json"
    old = json.loads(path.read_text())
    del old["checksum"], old["outputs"]["checksums"]
    path.write_text(json.dumps(old))
    assert verify_output(copy / "exported").by_size == [copy / "exported"]
    require_whole(copy / "exported")
    assert "recorded no checksums" in capsys.readouterr().err
    (copy / "exported" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has 2 bytes instead of"):
        require_whole(copy / "exported")


def test_the_command_names_damage_and_ends_with_1(llmforge, copy):
    done = llmforge("verify", copy, "--json")
    assert json.loads(done.stdout)["problems"] == []
    flip(copy / "grown" / "model.safetensors", 20_000)
    damaged = llmforge("verify", copy / "grown", copy / "pieces.jsonl", code=1)
    assert "grown/model.safetensors is damaged" in damaged.stdout
    assert "grown/model.safetensors is damaged" in damaged.stderr
    refused = llmforge("verify", copy.parent / "cache", code=1)
    assert "error:" in refused.stderr


def test_export_and_train_read_no_damaged_model(llmforge, copy, tmp_path):
    flip(copy / "run" / "modeling" / "model.safetensors", 20_000)
    flip(copy / "grown" / "model.safetensors", 20_000)
    words = ("export", "--checkpoint", copy / "run", "--output-dir", tmp_path / "exported")
    refused = llmforge(*words, code=1)
    assert "modeling/model.safetensors" in refused.stderr
    assert not (tmp_path / "exported").exists()
    llmforge(*words, "--no-verify")
    train = (
        "train",
        "--pretrained",
        copy / "grown",
        "--dataset",
        copy / "data",
        "--save-dir",
        tmp_path / "run",
    )
    assert "grown/model.safetensors" in llmforge(*train, code=1).stderr
    assert not (tmp_path / "run").exists()


def test_a_training_of_new_rows_alone_is_another_model(copy, tmp_path):
    """Two trainings of new-embeddings differ in a few rows of one tensor."""
    from llmforge.weights.export import FormatOptions, export

    model = tmp_path / "model"
    shutil.copytree(copy / "run" / "modeling", model, ignore=shutil.ignore_patterns("llmforge.json"))
    export(model, tmp_path / "exported", FormatOptions())
    assert export(model, tmp_path / "exported", FormatOptions()).skipped
    flip(model / "model.safetensors", (model / "model.safetensors").stat().st_size - 2)
    with pytest.raises(UserError, match="from other inputs"):
        export(model, tmp_path / "exported", FormatOptions())


def test_verifying_reads_the_disk_whatever_is_remembered(copy, own_cache, monkeypatch):
    """Damage of a disk changes no times: a remembered checksum must not stand for the bytes."""
    monkeypatch.setattr(remembered, "REMEMBERED_FROM", 0)
    monkeypatch.setattr(remembered.Identity, "is_settled", lambda self: True)
    file = copy / "exported" / "model.safetensors"
    whole = fingerprint(file)
    assert own_cache.read_bytes().count(b"\n") == 1
    flip(file, 20_000)
    identity = remembered.Identity.of(file.stat())
    remembered._remember(identity, whole)  # as if the file system had noticed nothing
    monkeypatch.setattr(remembered, "_read_now", {})
    remembered._remembered_lines.cache_clear()
    assert fingerprint(file) == whole
    with pytest.raises(UserError, match="is damaged"):
        require_whole(copy / "exported")


# What is remembered.


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that is large and old enough to be remembered."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2 << 20))
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process."""
    monkeypatch.setattr(remembered, "_read_now", {})
    remembered._remembered_lines.cache_clear()


def test_a_file_is_read_once(large, own_cache, monkeypatch):
    monkeypatch.setattr(remembered.Identity, "is_settled", lambda self: True)
    made = fingerprint(large)
    assert own_cache.stat().st_mode & 0o077 == 0
    forget(monkeypatch)
    monkeypatch.setattr(remembered.xxhash, "xxh3_128", None)  # reading it again would fail
    assert fingerprint(large) == made


@pytest.mark.parametrize(
    "damage", ["cut", "garbage before", "garbage", "another checksum", "empty", "directory", "link"]
)
def test_a_damaged_file_of_checksums_does_no_harm(damage, large, own_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(remembered.Identity, "is_settled", lambda self: True)
    made = fingerprint(large)
    line = own_cache.read_bytes()
    (tmp_path / "mine").write_text("mine")
    if damage == "cut":
        own_cache.write_bytes(line[:-5])
    elif damage == "garbage before":
        own_cache.write_bytes(b"\xff\x00 garbage without an end" + line)
    elif damage == "garbage":
        own_cache.write_bytes(os.urandom(5000))
    elif damage == "another checksum":
        at = line.index(b"xxh3:") + 5
        own_cache.write_bytes(line[:at] + b"0" * 32 + line[at + 32 :])
    elif damage == "empty":
        own_cache.write_bytes(b"")
    else:
        own_cache.unlink()
        own_cache.mkdir() if damage == "directory" else own_cache.symlink_to(tmp_path / "mine")
    forget(monkeypatch)
    assert fingerprint(large) == made
    forget(monkeypatch)
    assert fingerprint(large) == made
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_file_of_checksums_is_bounded(large, own_cache, monkeypatch):
    monkeypatch.setattr(remembered.Identity, "is_settled", lambda self: True)
    monkeypatch.setattr(remembered, "MOST_REMEMBERED", 1000)
    for _ in range(50):
        os.utime(large)
        fingerprint(large)
    assert own_cache.stat().st_size < 1500


def test_a_file_written_just_now_is_not_remembered(tmp_path, own_cache):
    (tmp_path / "new.bin").write_bytes(bytes(1 << 20))
    fingerprint(tmp_path / "new.bin")
    assert not own_cache.exists()


def test_without_a_place_to_remember_everything_works(large, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(remembered.Identity, "is_settled", lambda self: True)
    assert fingerprint(large) == fingerprint(large)
