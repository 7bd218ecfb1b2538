"""Manifests whose added values have another shape, or that version 0.1 wrote."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_mutations import at, call

from llmforge.errors import UserError
from llmforge.steps import Outcome, Step, manifest_path, read_manifest, run_step, write_manifest

WRONG: list[Any] = [None, -1, "x", [], [[]], {}, {"a": None}, True, 1e300, 10**30]


@pytest.fixture(scope="module")
def steps(llmforge, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of every step that adds values which another command, or the same one again, reads."""
    out = tmp_path_factory.mktemp("steps")
    shutil.copytree(tiny_model, out / "model")
    lines = [{"text": f"the cat sat on the mat {line} 猫坐在垫子上", "category": "a"} for line in range(100)]
    (out / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for words in MADE.values():
        llmforge(*at(words, out))
    return out


MADE = {
    "pieces.jsonl": "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output pieces.jsonl",
    "tok": "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl --target-tokenizer-dir tok",
    "grown": "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok --target-model-path grown",
    "data": "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir data --max-length 64 "
    "--num-spliced-dataset-bins 1 --workers 1",
    "exported": "export --checkpoint grown --output-dir exported",
    "delta": "delta make --base model --target exported --output delta",
}
READ = {
    "grown": ("plan --pretrained grown --dataset data", "export --checkpoint grown --output-dir NEW"),
    "data": ("plan --pretrained grown --dataset data", "inspect-data data --tokenizer-dir tok"),
    "exported": ("delta make --base model --target exported --output NEW",),
}


def leaves(value: Any, name: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON value."""
    yield name
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from leaves(one, (*name, key))


def put(value: Any, name: tuple[Any, ...], wrong: Any) -> Any:
    """`value` with `wrong` in the place `name`."""
    if not name:
        return wrong
    if isinstance(value, list):
        return [put(one, name[1:], wrong) if i == name[0] else one for i, one in enumerate(value)]
    return {key: put(one, name[1:], wrong) if key == name[0] else one for key, one in value.items()}


@pytest.mark.slow
@pytest.mark.parametrize("what", MADE)
def test_values_of_the_wrong_shape_are_named_by_file(steps: Path, what: str) -> None:
    damage(steps, what, most=3)


@pytest.mark.stress
@pytest.mark.parametrize("what", MADE)
def test_all_values_of_the_wrong_shape_are_named_by_file(steps: Path, what: str) -> None:
    print(
        f"\n{damage(steps, what)} values of the manifest of {what} of another shape: refused by name, or not read"
    )


def damage(steps: Path, what: str, most: int | None = None) -> int:
    """Gives values that the step `what` added another shape, `most` of them; the manifest itself is in order (its
    checksum fits), as one of another version would be. Returns their number.
    """
    path = manifest_path(steps / what)
    kept, whole = path.read_bytes(), read_manifest(steps / what)
    problems: list[str] = []
    places = [("outputs", *n) for n in leaves(whole.outputs) if n and n[0] not in ("files", "checksums")]
    places += [("metrics", *n) for n in leaves(whole.metrics) if n]
    chance = random.Random(1)
    chosen = chance.sample(places, most) if most else places
    try:
        for number, (field, *place) in enumerate(chosen):
            wrong = WRONG[number % len(WRONG)]
            changed = replace(whole, **{field: put(getattr(whole, field), tuple(place), wrong)})
            write_manifest(path, changed)
            for words in (MADE[what], *READ.get(what, ())):
                code, said = call(at(words, steps))
                shutil.rmtree(steps / "NEW", ignore_errors=True)
                name = f"{field}.{'.'.join(map(str, place))} = {wrong!r}: {words.split()[0]}: "
                if "fault of llmforge" in said or "Traceback" in said or code not in (0, 1):
                    problems.append(name + said[-300:])
                elif code and "llmforge.json" not in said and str(steps / what) not in said:
                    problems.append(f"{name}names no file: {said[-300:]}")
    finally:
        path.write_bytes(kept)
    assert not problems, "\n".join(problems)
    return len(chosen)


def test_the_field_is_named(steps: Path) -> None:
    path = manifest_path(steps / "data")
    kept, whole = path.read_bytes(), read_manifest(steps / "data")
    parts = [{**whole.metrics["parts"][0], "tokens": "7"}]
    try:
        write_manifest(path, replace(whole, metrics={**whole.metrics, "parts": parts}))
        code, said = call(at("plan --pretrained grown --dataset data", steps))
    finally:
        path.write_bytes(kept)
    assert code == 1
    assert f"{path} is not a manifest that this version can read (metrics.parts[0].tokens is " in said


@pytest.mark.parametrize("name", ["part-x", "part-00007", "part-99999999999999999999999", "part-٣٣٣٣٣"])
def test_directories_that_are_no_parts_are_named(steps: Path, name: str) -> None:
    stray = steps / "data" / "arrow" / name
    stray.mkdir()
    try:
        code, said = call(at("inspect-data data --tokenizer-dir tok", steps))
    finally:
        stray.rmdir()
    assert code == 1
    assert name in said or "part" in said
    assert "fault" not in said


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model directory with 300 MB of weights, all but a little of it a hole."""
    model = tmp_path / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        file.write(b"begin")
        file.seek(200 << 20)
        file.write(b"middle" * 100_000)
        file.truncate(300 << 20)
        file.seek((300 << 20) - 3)
        file.write(b"end")
    (model / "config.json").write_text("{}")
    return model


# What version 0.1 took the directory of `large` for.
SAMPLED = "xxh3:d4a6d340cc7f5bf2058bb7f7903681f2"


def build(path: Path) -> Outcome:
    (path / "file").write_text("made")
    return Outcome()


def test_what_version_0_1_made_of_large_weights_is_recognized_with_a_note(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Step("grow", tmp_path / "out", {"n": 1}, [large])
    made = run_step(step, build).manifest
    outputs = {key: value for key, value in made.outputs.items() if key != "checksums"}
    path = manifest_path(tmp_path / "out")
    write_manifest(
        path, replace(made, inputs=[replace(made.inputs[0], fingerprint=SAMPLED)], outputs=outputs)
    )
    values = json.loads(path.read_bytes())
    del values["checksum"]  # version 0.1 wrote none
    path.write_text(json.dumps(values))
    assert run_step(step, build).skipped
    assert (
        f"an earlier version made this from {large} and recorded only a sample of it"
        in capsys.readouterr().err
    )
    with (large / "model.safetensors").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(
        UserError, match=r"out is finished, but from other inputs .*replace it with --overwrite"
    ):
        run_step(step, build)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer_config.json", "notes.md", "tool.py"])
def test_training_copies_no_file_from_outside_the_model(steps: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(steps / "grown", tmp_path / "grown")
    manifest_path(tmp_path / "grown").unlink()
    secret = tmp_path / "secret"
    inside = tmp_path / "grown" / name
    secret.write_bytes(inside.read_bytes() if inside.exists() else b"private")
    inside.unlink(missing_ok=True)
    inside.symlink_to(secret)
    words = f"train --dataset data --pretrained {tmp_path}/grown --save-dir {tmp_path}/run --max-steps 1"
    code, said = call([*at(words, steps), "--mixed-precision", "fp32"])
    assert code == 1
    assert f"{inside} is a link to {secret}, outside its directory" in said
    assert not (tmp_path / "run").exists()
