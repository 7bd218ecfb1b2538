"""Every file that a command reads, damaged in every way: done, or refused in one sentence, and in no case a hang."""

import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60  # far above what any of these takes, on a busy machine


def replaced(data: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_bytes(data)

    return damage


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes() or b"A")
    place = random.Random(len(data)).randrange(len(data))
    data[place] ^= 0x41
    file.write_bytes(data)


def grown(file: Path) -> None:
    file.write_bytes(file.read_bytes() + bytes(100))


def in_place_of(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def retyped(value: Any) -> Callable[[Path], None]:
    """Every value of a JSON object becomes `value`; another file is not changed by it."""

    def damage(file: Path) -> None:
        with contextlib.suppress(ValueError):
            held = json.loads(file.read_bytes())
            if isinstance(held, dict):
                file.write_text(json.dumps(dict.fromkeys(held, value)))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": replaced(b""),
    "null": replaced(b"null"),
    "a list": replaced(b"[]"),
    "an object": replaced(b"{}"),
    "a number": replaced(b"1e999"),
    "nested": replaced(b"[" * 100_000),
    "nested whole": replaced(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "binary": replaced(bytes(random.Random(0).randrange(256) for _ in range(1000))),
    "surrogate": replaced(b'{"a": "\\ud800", "\\udfff": 1}'),
    "truncated": truncated,
    "flipped": flipped,
    "grown": grown,
    "missing": in_place_of(lambda file: None),
    "a directory": in_place_of(lambda file: file.mkdir()),
    "a pipe": in_place_of(os.mkfifo),
    "a dangling link": in_place_of(lambda file: file.symlink_to("nowhere")),
    "a link to itself": in_place_of(lambda file: file.symlink_to(file.name)),
    "values null": retyped(None),
    "values list": retyped([[]]),
    "values number": retyped(-1),
    "values huge": retyped(10**400),
    "values text": retyped("\x1b[31m"),
}


@pytest.fixture(scope="module")
def project(llmforge, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything: a model, texts, pieces, a dataset, a training with two checkpoints, an export."""
    out = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_model, out / "model")
    with (out / "corpus.jsonl").open("w") as file:
        for line in range(200):
            file.write(
                json.dumps({"text": f"the cat sat on the mat {line} 猫坐在垫子上", "category": "a"}) + "\n"
            )
    (out / "words.txt").write_text("猫 10 n\n垫子 5 n\n")
    (out / "patterns.txt").write_text("hat\n")
    (out / "hosts").write_text("localhost\n")
    (out / "flags.yaml").write_text("lr: 1e-3\nmax-steps: 2\n")
    for words in (
        "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output pieces.jsonl",
        "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl --target-tokenizer-dir tok",
        "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok --target-model-path grown",
        "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir data --max-length 64 "
        "--num-spliced-dataset-bins 1",
        "train --pretrained grown --dataset data --save-dir run --max-steps 4 --save-interval 2 --mixed-precision fp32",
        "export --checkpoint run --output-dir exported",
        "delta make --base model --target exported --output delta",
    ):
        llmforge(*at(words, out))
    return out


NAMES = ("model", "corpus.jsonl", "words.txt", "patterns.txt", "hosts", "flags.yaml", "pieces.jsonl", "tok")
NAMES = (*NAMES, "grown", "data", "run", "exported", "delta")


def at(words: str, out: Path) -> list[str]:
    """The words of a command with the names of the project as paths below `out`; `NEW` is a new path there."""

    def placed(position: int, word: str) -> str:
        if position and word.split("/")[0] in (*NAMES, "NEW"):  # the first word is the command
            return str(out / word)
        return word.replace("a=corpus", f"a={out}/corpus")

    return [placed(position, word) for position, word in enumerate(words.split())]


# What is damaged, and the commands that read it.
READERS: dict[str, tuple[str, ...]] = {
    "corpus.jsonl": (
        "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output NEW",
        "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir NEW --max-length 64 "
        "--num-spliced-dataset-bins 1 --workers 1",
        "evaluate --model exported --data a=corpus.jsonl",
        "compare-tokenizers model tok --corpus a=corpus.jsonl",
    ),
    "words.txt": (
        "learn-pieces --source-tokenizer-dir model --word-list words.txt --num-pieces 5 --output NEW",
    ),
    "patterns.txt": (
        "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir NEW --max-length 64 "
        "--num-spliced-dataset-bins 1 --workers 1 --blocklist patterns.txt",
    ),
    "pieces.jsonl": (
        "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl --target-tokenizer-dir NEW",
    ),
    "hosts": ("launch --hostfile hosts --dry-run -- train --pretrained grown --dataset data --save-dir NEW",),
    "flags.yaml": ("train --pretrained grown --dataset data --save-dir NEW --config flags.yaml --dry-run",),
    "model": (
        "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output NEW",
        "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl --target-tokenizer-dir NEW",
        "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok --target-model-path NEW",
        "evaluate --model model --data a=corpus.jsonl --max-documents 3",
        "generate --model model --prompt the --max-new-tokens 2",
        "export --checkpoint model --output-dir NEW",
        "compare-tokenizers model tok --corpus a=corpus.jsonl",
    ),
    "tok": (
        "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok --target-model-path NEW",
        "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir NEW --max-length 64 "
        "--num-spliced-dataset-bins 1 --workers 1",
    ),
    "grown": (
        "plan --pretrained grown --dataset data",
        "train --pretrained grown --dataset data --save-dir NEW --max-steps 1 --mixed-precision fp32",
    ),
    "data": (
        "inspect-data data --tokenizer-dir tok",
        "plan --pretrained grown --dataset data",
        "train --pretrained grown --dataset data --save-dir NEW --max-steps 1 --mixed-precision fp32",
    ),
    "run": (
        "export --checkpoint run --output-dir NEW",
        "train --pretrained grown --dataset data --save-dir run --max-steps 4 --save-interval 2 --mixed-precision fp32 "
        "--load-checkpoint latest",
    ),
    "delta": ("delta apply --base model --delta delta --output NEW",),
}


class HangError(BaseException):
    """A command that took longer than `SECONDS`."""


def call(words: list[str]) -> tuple[int, str]:
    """(exit code, standard error) of a command run in this process."""
    from llmforge.cli.main import main

    def give_up(*_: object) -> None:
        raise HangError

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    arguments, sys.argv = sys.argv, ["llmforge", *words]
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # where a library does not let the alarm in
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        sys.argv = arguments
        for number, handler in before.items():
            signal.signal(number, handler)
    err.seek(0)
    return code, err.read()


@contextlib.contextmanager
def damaged(project: Path, what: str, file: Path, name: str) -> Iterator[None]:
    """`file` of the project damaged, and all of `what` as it was afterwards."""
    kept = project.parent / "kept"
    target = project / what
    (shutil.copytree if target.is_dir() else shutil.copy2)(
        target, kept, **({"symlinks": True} if target.is_dir() else {})
    )
    try:
        DAMAGES[name](file)
        yield
    finally:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)  # rmtree would open a pipe, and wait
        kept.rename(target)
        new = project / "NEW"
        for left in project.glob("*NEW*"):
            (shutil.rmtree if left.is_dir() and not left.is_symlink() else Path.unlink)(left)
        assert not new.exists()


def attack(project: Path, what: str, file: str, name: str, words: str) -> str | None:
    """What is wrong with how the command took the damage, if anything."""
    with damaged(project, what, project / file, name):
        try:
            code, messages = call(at(words, project))
        except HangError:
            return "hangs"
        except BaseException as error:
            return f"raises {error!r}"
        hidden = [p.name for p in project.glob(".*NEW*")]
    if "fault of llmforge" in messages or "Traceback" in messages:
        return messages[-600:]
    if code not in (0, 1, 2) or (code and "error: " not in messages and code == 1):
        return f"exit code {code}: {messages[-600:]}"
    if "\x1b" in messages:
        return "an escape sequence in its messages"
    return f"leaves {hidden}" if hidden and code else None


def everything(project: Path) -> list[tuple[str, str, str, str]]:
    """(what, file, damage, command) of every attack."""
    found = []
    for what, commands in READERS.items():
        target = project / what
        files = [target] if target.is_file() else sorted(f for f in target.rglob("*") if f.is_file())
        for file in files:
            name = file.relative_to(project).as_posix()
            if "tensorboard" in name or file.name in ("README.md", "config_used.yaml"):
                continue
            found += [(what, name, damage, words) for damage in DAMAGES for words in commands]
    return found


def run_attacks(project: Path, attacks: list[tuple[str, str, str, str]]) -> None:
    problems = []
    for what, file, damage, words in attacks:
        if problem := attack(project, what, file, damage, words):
            problems.append(f"{file} {damage}: llmforge {words.split()[0]}: {problem}")
    assert not problems, "\n\n".join([f"{len(problems)} of {len(attacks)}", *problems])


@pytest.mark.slow
def test_damaged_files_are_refused_in_a_sentence(project):
    run_attacks(project, random.Random(1).sample(everything(project), 80))


FOUND = (  # by the test of every damage
    ("model/tokenizer_config.json", "surrogate", "init-tokenizer"),
    ("data/arrow/part-00000/data-00000-of-00001.arrow", "binary", "inspect-data"),
    ("data/arrow/part-00000/data-00000-of-00001.arrow", "truncated", "inspect-data"),
    ("data/arrow/part-00000/data-00000-of-00001.arrow", "a directory", "inspect-data"),
    ("run/run.json", "a pipe", "train"),
)


def test_damage_that_was_a_fault_is_none_any_more(project):
    chosen = [one for one in everything(project) if (one[1], one[2], one[3].split()[0]) in FOUND]
    assert len(chosen) == len(FOUND)
    run_attacks(project, chosen)


def test_pipes_are_refused(project):
    every = {
        file: (what, file, damage, words)
        for what, file, damage, words in everything(project)
        if damage == "a pipe"
    }
    read = [
        attack
        for file, attack in every.items()
        if "/" not in file or file.endswith((".arrow", ".safetensors"))
    ]
    assert {"hosts", "flags.yaml", "corpus.jsonl"} < {file for _, file, _, _ in read}
    run_attacks(project, read)


@pytest.mark.stress
def test_every_damage_of_every_file_is_refused_in_a_sentence(project):
    attacks = everything(project)
    run_attacks(project, attacks)
    print(f"\n{len(attacks)} damaged inputs: done, or refused in a sentence")
