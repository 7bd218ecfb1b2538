"""Outputs: nothing of anybody else's is overwritten, emptied, followed or deleted, whatever the flags and whoever else
writes at the same time.
"""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from llmforge.errors import InterruptionError, UserError
from llmforge.steps import (
    MANIFEST,
    Outcome,
    Step,
    check_apart,
    empty_directory,
    fingerprint,
    publish,
    read_manifest,
    run_step,
)
from llmforge.steps.places import Place
from llmforge.steps.reports import check_report, write_report


def write(path: Path) -> Outcome:
    (path / "model").mkdir(exist_ok=True)
    (path / "model" / "weights.bin").write_bytes(b"weights")
    return Outcome()


def write_file(path: Path) -> Outcome:
    path.write_text("pieces")
    return Outcome()


def step(output: Path, name: str = "grow", **changes) -> Step:
    return Step(name, output, **{"arguments": {"n": 1}, **changes})


def everything(directory: Path) -> dict[str, bytes | str]:
    """Names and contents below `directory`, links as what they point to."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else ""
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A directory of the user's, with a file and a link in it."""
    directory = tmp_path / "thesis"
    directory.mkdir()
    (directory / "thesis.tex").write_text("three years of work")
    (directory / "data").symlink_to("/usr")
    return directory


HOSTILE = {
    "empty object": b"{}",
    "list": b"[]",
    "text": b"not json",
    "empty": b"",
    "Latin-1": '{"step": "gr\u00f6w"}'.encode("latin-1"),
    "UTF-16": '{"step": "grow"}'.encode("utf-16"),
    "nested": b'{"step": "grow", "arguments": '
    + b'{"a":' * 50_000
    + b"1"
    + b"}" * 50_000
    + b', "inputs": []}',
    "lists": b"[" * 100_000,
    "long number": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"n": '
    + b"9" * 10_000
    + b"}}",
    "step is a number": b'{"step": 1, "arguments": {}, "inputs": []}',
    "arguments are a list": b'{"step": "grow", "arguments": [], "inputs": []}',
    "inputs are words": b'{"step": "grow", "arguments": {}, "inputs": ["a"]}',
    "an input without fingerprint": b'{"step": "grow", "arguments": {}, "inputs": [{"path": "a"}]}',
    "an input of numbers": b'{"step": "grow", "arguments": {}, "inputs": [{"path": 1, "fingerprint": 2}]}',
    "outputs are a list": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": []}',
    "files are a list": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": ["a"]}}',
    "size is text": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"a": "1"}}}',
    "size is true": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"a": true}}}',
    "name leads out": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"../a": 1}}}',
    "name leads out inside": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"b/../../a": 1}}}',
    "name is absolute": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"/etc/passwd": 1}}}',
    "name with NUL": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {"a\\u0000": 1}}}',
    "fingerprint is a number": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"fingerprint": 7}}',
    "checksums of others": b'{"step": "grow", "arguments": {}, "inputs": [], "outputs": {"files": {}, "checksums": {"a": "xxh3:"}}}',
    "unknown key": b'{"step": "grow", "arguments": {}, "inputs": [], "__class__": 1}',
    "seal of another": b'{"step": "grow", "arguments": {}, "inputs": [],\n  "checksum": "xxh3:00000000000000000000000000000000"\n}\n',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_a_sentence_that_names_it(kind, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_bytes(HOSTILE[kind])
    (out / "thesis.tex").write_text("three years of work")
    before = everything(tmp_path)
    for read in (
        lambda: read_manifest(out),
        lambda: fingerprint(out),
        lambda: run_step(step(out), write),
        lambda: run_step(step(out, overwrite=True), write),
    ):
        with pytest.raises(UserError, match=r"llmforge\.json is not a manifest") as refused:
            read()
        assert len(str(refused.value)) < 500
    assert everything(tmp_path) == before


def test_a_huge_manifest_is_not_read(tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="too many"):
        read_manifest(tmp_path / "out")


def test_a_manifest_of_the_version_before_is_read(tmp_path):
    run_step(step(tmp_path / "out"), write)
    path = tmp_path / "out" / MANIFEST
    old = json.loads(path.read_text())
    del old["checksum"], old["outputs"]["checksums"]
    path.write_text(json.dumps(old))
    assert run_step(step(tmp_path / "out"), write).skipped
    (tmp_path / "out" / "model" / "weights.bin").write_bytes(b"weight")
    with pytest.raises(UserError, match=r"weights\.bin was changed"):
        fingerprint(tmp_path / "out")


@pytest.mark.parametrize("byte", [0, 9, 40, -3, -1])
def test_one_changed_byte_of_a_manifest_is_seen(byte, tmp_path):
    run_step(step(tmp_path / "out"), write)
    path = tmp_path / "out" / MANIFEST
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path / "out")


# --overwrite.


def test_overwrite_never_replaces_the_output_of_another_command(tmp_path):
    run_step(step(tmp_path / "out", "train"), write)
    before = everything(tmp_path)
    with pytest.raises(
        UserError, match="is the output of llmforge train, which --overwrite does not replace"
    ):
        run_step(step(tmp_path / "out", "export", overwrite=True), write)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.md", ".gitattributes", "model/notes.md", "empty/", "model/link"])
def test_overwrite_keeps_and_names_what_the_user_put_into_an_output(name, tmp_path, thesis):
    out = tmp_path / "out"
    run_step(step(out), write)
    if name.endswith("/"):
        (out / name).mkdir()
    elif name.endswith("link"):
        (out / name).symlink_to(thesis)
    else:
        (out / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=f"did not write \\({name.rstrip('/')}\\)"):
        run_step(step(out, arguments={"n": 2}, overwrite=True), write)
    assert everything(tmp_path) == before
    assert run_step(step(out), write).skipped, "without --overwrite such a file is no matter"


def test_a_stray_manifest_makes_no_directory_llmforge_s(tmp_path, thesis):
    run_step(step(tmp_path / "out"), write)
    (thesis / MANIFEST).write_bytes((tmp_path / "out" / MANIFEST).read_bytes())
    before = everything(tmp_path)
    with pytest.raises(UserError, match="did not write"):
        run_step(step(thesis, arguments={"n": 2}, overwrite=True), write)
    assert everything(tmp_path) == before


def test_what_is_put_into_an_output_while_it_is_made_again_is_kept(tmp_path):
    out = tmp_path / "out"
    run_step(step(out), write)

    def slow(path: Path) -> Outcome:
        (out / "notes.md").write_text("mine")
        return write(path)

    with pytest.raises(InterruptionError, match=r"notes\.md"):
        run_step(step(out, arguments={"n": 2}, overwrite=True), slow)
    assert (out / "notes.md").read_text() == "mine"


# Inputs.


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("in", "both an input"),
        (".", "both an input"),
        ("in/out", "would be inside"),
        ("in/a/b", "would be inside"),
    ],
)
def test_an_output_never_contains_an_input_nor_lies_in_one(output, sentence, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("x")
    before = everything(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=sentence):
            run_step(step(tmp_path / output, inputs=[tmp_path / "in"], overwrite=overwrite), write)
    assert everything(tmp_path) == before


def test_links_do_not_hide_that_an_output_contains_an_input(tmp_path):
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for output, path in (
        ("real", "link/in"),
        ("link", "real/in"),
        ("link/in/out", "real/in"),
        ("link/in/../in", "real/in"),
    ):
        with pytest.raises(UserError, match="input"):
            check_apart(tmp_path / output, [tmp_path / path], "grow")
    check_apart(tmp_path / "link" / "out", [tmp_path / "real" / "in"], "grow")


# Links and files where the output goes.

SIBLINGS = [".out.partial", ".out.replaced", ".out.lock"]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("kind", ["link to a directory", "link to nothing", "file", "directory", "FIFO"])
def test_a_hidden_sibling_of_somebody_else_s_is_refused_before_the_work(kind, name, single, tmp_path, thesis):
    path = tmp_path / name
    if kind == "link to a directory":
        path.symlink_to(thesis)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        path.write_text("mine")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "mine").write_text("mine")
    if name == ".out.replaced" and single:
        pytest.skip("files are replaced in one rename")
    before = everything(tmp_path) if kind != "FIFO" else None

    def never(path: Path) -> Outcome:
        raise AssertionError("the work began")

    with pytest.raises(UserError, match=f"{name} exists and was not"):
        run_step(step(tmp_path / "out", single_file=single), never)
    if before is not None:
        assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "kind", ["link to a directory", "link to an empty directory", "link to nothing", "file"]
)
def test_an_output_that_cannot_be_published_is_refused_before_the_work(kind, tmp_path, thesis):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(
            {"link to a directory": thesis, "link to nothing": tmp_path / "no"}.get(kind, tmp_path / "empty")
        )
    before = everything(tmp_path)

    def never(path: Path) -> Outcome:
        raise AssertionError("the work began")

    for single, overwrite in ((False, False), (False, True), (True, False), (True, True)):
        with pytest.raises(UserError, match="out"):
            run_step(step(out, overwrite=overwrite, single_file=single), never)
    assert everything(tmp_path) == before


def test_a_finished_output_behind_a_link_is_done_but_never_replaced(tmp_path):
    run_step(step(tmp_path / "real"), write)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert run_step(step(tmp_path / "out"), write).skipped
    with pytest.raises(UserError, match="symbolic link"):
        run_step(step(tmp_path / "out", arguments={"n": 2}, overwrite=True), write)


def test_links_inside_what_is_emptied_go_and_what_they_point_to_stays(tmp_path, thesis):
    (tmp_path / "full" / "sub").mkdir(parents=True)
    (tmp_path / "full" / "sub" / "link").symlink_to(thesis)
    (tmp_path / "full" / "link").symlink_to(thesis / "thesis.tex")
    before = everything(thesis)
    empty_directory(tmp_path / "full")
    assert not any((tmp_path / "full").iterdir())
    (tmp_path / "full").rmdir()
    (tmp_path / "full").symlink_to(thesis)
    with pytest.raises(UserError, match="was not"):
        empty_directory(tmp_path / "full")
    assert everything(thesis) == before


def test_a_file_is_not_published_over_somebody_else_s_manifest(tmp_path):
    (tmp_path / f"out.{MANIFEST}").write_text("mine")
    with pytest.raises(UserError, match="was not"):
        run_step(step(tmp_path / "out", single_file=True), write_file)
    assert (tmp_path / f"out.{MANIFEST}").read_text() == "mine"


# Reports: --output, --html, --config-file.


def test_a_report_replaces_nothing_but_an_earlier_one_that_was_not_changed(tmp_path):
    path = tmp_path / "report.md"
    path.write_text("mine")
    with pytest.raises(
        UserError, match=r"--output .*report\.md exists and was not written by llmforge compare"
    ):
        write_report(path, "theirs", "compare", "--output")
    assert path.read_text() == "mine"
    path.unlink()
    write_report(path, "one", "compare", "--output")
    write_report(path, "two", "compare", "--output")
    assert path.read_text() == "two"
    with pytest.raises(UserError, match="output of llmforge compare"):
        check_report(path, "inspect-data", "--html")
    path.write_text("tow")
    with pytest.raises(UserError, match="was changed after"):
        write_report(path, "three", "compare", "--output")
    assert path.read_text() == "tow"


def test_a_user_s_empty_lock_file_survives(tmp_path):
    (tmp_path / ".out.lock").touch()
    run_step(step(tmp_path / "out"), write)
    assert (tmp_path / ".out.lock").exists()


def test_an_output_before_that_got_files_meanwhile_is_kept_under_a_name(tmp_path, capsys):
    run_step(step(tmp_path / "out"), write)
    (tmp_path / "built").mkdir()
    write(tmp_path / "built")
    (tmp_path / "out" / "notes.md").write_text("mine")
    publish(tmp_path / "built", tmp_path / "out")
    assert (tmp_path / "out.kept-1" / "notes.md").read_text() == "mine"
    assert "out.kept-1" in capsys.readouterr().err


def test_a_full_disk_is_named_with_the_file_and_the_need_and_leaves_nothing(tmp_path):
    def fill(path: Path) -> Outcome:
        (path / "model.safetensors").write_bytes(bytes(3_000_000))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        InterruptionError,
        match=r"not enough disk space for .*out .*model\.safetensors failed after 0\.003 GB.*are free",
    ):
        run_step(step(tmp_path / "out"), fill)
    assert list(tmp_path.iterdir()) == []


def test_the_working_directory_and_the_root_are_no_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("mine")
    for output in (Path(), Path("/"), Path(".."), tmp_path / ".." / tmp_path.name):
        with pytest.raises(UserError, match="was not written by llmforge"):
            run_step(step(output, overwrite=True), write)
    assert Place.of(Path("a/../b")).output == tmp_path / "b"


def test_a_file_that_is_written_to_is_not_taken_for_whole(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"x" * (1 << 20))
    first = fingerprint(path)
    time.sleep(0.01)
    with path.open("r+b") as file:
        file.write(b"y")
    assert fingerprint(path) != first
