"""Manifests and fingerprints."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmforge.errors import UserError
from llmforge.steps import Manifest, fingerprint, fingerprint_json, read_manifest, write_manifest


def test_what_is_not_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="unfinished, or was not created by llmforge"):
        read_manifest(tmp_path, "prepare-data")
    (tmp_path / "llmforge.json").write_text('{"step": "train"')
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path)


def test_the_output_of_another_step_is_refused(tmp_path):
    write_manifest(tmp_path / "llmforge.json", Manifest("init-model", {}))
    with pytest.raises(
        UserError, match="written by llmforge init-model; give an output of llmforge train instead"
    ):
        read_manifest(tmp_path, "train")


def test_a_manifest_comes_back_as_it_was(tmp_path):
    written = write_manifest(
        tmp_path / "llmforge.json", Manifest("train", {"名": "值"}, metrics={"loss": 1.5})
    )
    assert read_manifest(tmp_path) == written
    assert "名" in (tmp_path / "llmforge.json").read_text(encoding="utf-8")


def test_a_fingerprint_is_of_names_and_contents_only(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("a")
        (tmp_path / name / "inner" / "b.txt").write_text("b")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / ".cache").write_text("hidden files do not count")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "c.txt")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")
    with pytest.raises(UserError, match="does not exist"):
        fingerprint(tmp_path / "three")


@pytest.mark.parametrize("name", ["text.jsonl", "model.safetensors"])
def test_one_byte_anywhere_changes_the_fingerprint_of_a_large_file(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(300 << 20)
    before = fingerprint(path)
    with path.open("r+b") as file:
        file.seek(123456789)
        file.write(b"y")
    assert fingerprint(path) != before


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False))))
def test_the_order_of_keys_does_not_change_a_fingerprint(value):
    assert fingerprint_json(value) == fingerprint_json(dict(reversed(value.items())))
    assert fingerprint_json(value) == fingerprint_json(json.loads(json.dumps(value)))
