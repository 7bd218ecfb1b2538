"""Careless flags, and surroundings that no command expects: done, or one sentence; no traceback, nothing left behind."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from test_mutations import HangError, call


@pytest.fixture(scope="module")
def place(llmforge, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("careless")
    shutil.copytree(tiny_model, out / "model")
    (out / "corpus.jsonl").write_text(
        "".join(f'{{"text": "the cat sat on the mat {i} 猫坐在垫子上"}}\n' for i in range(60))
    )
    (out / "pieces.txt").write_text("hat\nmat\n")
    (out / "hosts").write_text("localhost\n")
    (out / "recipe.yaml").write_text("name: data\nsteps:\n  - verify: ${name}\n")
    words = f"--data-input-dirs {out}/corpus.jsonl --tokenizer-dir {out}/model --data-output-dir {out}/data"
    llmforge("prepare-data", *words.split(), "--max-length", "64", "--num-spliced-dataset-bins", "1")
    return out


LEARN = "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output OUT"
GROW = (
    "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.txt --target-tokenizer-dir OUT"
)
PREPARE = (
    "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir model --data-output-dir OUT --max-length 64 "
    "--num-spliced-dataset-bins 1 --workers 1"
)
TRAIN = "train --pretrained model --dataset data --save-dir OUT --max-steps 1 --dry-run"
INSPECT = "inspect-data data --tokenizer-dir model"
GENERATE = "generate --model model --prompt the --max-new-tokens 2"


def attempt(place: Path, words: list[str], surround: Callable[[], object]) -> tuple[int, str]:
    """(exit code, standard error) of a command in a process of its own, in a copy of `place`, after `surround()`."""
    copy = place.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place, copy)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            os.close(reader)
            os.chdir(copy)
            surround()
            code, said = call(words)
            said = f"{code} {said}"
        except HangError:
            said = "-1 hangs"
        except BaseException as error:
            said = f"-1 raises {error!r}"
        finally:
            with contextlib.suppress(OSError):
                os.write(writer, said.encode(errors="replace")[-60_000:])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read().decode()
    os.waitpid(child, 0)
    code, _, said = answer.partition(" ")
    for directory in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    hidden = [path.name for path in copy.rglob(".*") if path.is_file()]
    assert not (hidden and int(code)), (hidden, said)
    return int(code), said


def without_privileges() -> None:
    """Takes root's right to pass over permissions away: like any user, it now has those of its own files alone."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


def mode(path: str, bits: int) -> Callable[[], None]:
    def change() -> None:
        os.chmod(path, bits)
        without_privileges()

    return change


def variables(**values: str | None) -> Callable[[], None]:
    def change() -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return change


def limited(what: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def large(path: str) -> Callable[[], None]:
    return lambda: os.truncate(path, 3 << 30)


def nothing() -> None:
    pass


def out(words: str, name: str) -> list[str]:
    return [name if word == "OUT" else word for word in words.split()]


OUTPUTS = [
    "a\nb",
    "",
    "-",
    "~/x",
    "x" * 300,
    "/".join(["d" * 200] * 25),
    "corpus.jsonl/x",
    "model/x",
    "/proc/x",
]
OUTPUTS += ["/dev/null", "\udcff", unicodedata.normalize("NFD", "é"), "CON", "OUT "]
SURROUNDINGS: dict[str, Callable[[], object]] = {
    "read-only": mode(".", 0o555),
    "no search": mode(".", 0o666),
    "no home": variables(HOME=None, XDG_CACHE_HOME=None),
    "a home that is missing": variables(HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent/cache"),
    "no TMPDIR": variables(TMPDIR="/nonexistent"),
    "a TMPDIR that is full": variables(TMPDIR="/dev/full"),
    "few files": limited(resource.RLIMIT_NOFILE, 64),
    "no room in files": limited(resource.RLIMIT_FSIZE, 0),
    "umask 077": lambda: os.umask(0o077),
    "umask 777": lambda: (os.umask(0o777), without_privileges()),
    "no standard input": lambda: os.close(0),
    "a future clock": lambda: [os.utime(path, (4e9, 4e9)) for path in Path(".").rglob("*")],
    "a directory that is gone": lambda: (os.mkdir("gone"), os.chdir("gone"), os.rmdir("../gone")),
    "no way into the model": mode("model", 0o444),
    "no list of the model": mode("model", 0o311),
    "no way to read the corpus": mode("corpus.jsonl", 0),
    "child signals ignored": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
}
LARGE = {
    "model/tokenizer.json": GROW,
    "model/config.json": TRAIN,
    "data/llmforge.json": INSPECT,
    "hosts": "launch --hostfile hosts --dry-run -- train --pretrained model --dataset data --save-dir OUT",
    "recipe.yaml": "run recipe.yaml",
}
SET = [
    "",
    "=",
    "name",
    "=x",
    "name=",
    "a.b=c",
    "name=b=c",
    "steps=1",
    "steps[0]=x",
    "__class__=1",
    "é=1",
    "name\n=1",
]
HOSTS = ["\0", "a\0b", "localhost:99999", "-", "\ufeff localhost", "x" * 300, "..", "#", "\x1b[31m", "é"]
TEMPERATURES = ["nan", "inf", "1e400", "1e39", "1e-45", "1e-320"]


def attacks() -> dict[str, tuple[list[str], Callable[[], object]]]:
    found: dict[str, tuple[list[str], Callable[[], object]]] = {}
    for number, name in enumerate(OUTPUTS):
        words = (LEARN, GROW, PREPARE, TRAIN)[number % 4]
        found[f"output {name[:9]!r}"] = (out(words, name), nothing)
    for number, (name, surround) in enumerate(SURROUNDINGS.items()):
        found[name] = (out((GROW, PREPARE, LEARN)[number % 3], "OUT"), surround)
    for file, words in LARGE.items():
        found[f"3 GB of {file}"] = (out(words, "OUT"), large(file))
    for value in SET:
        found[f"--set {value!r}"] = (["run", "recipe.yaml", "--set", value], nothing)
    for text in HOSTS:
        words = ["launch", "--hostfile", "hosts", "--dry-run", "--", *out(TRAIN, "OUT")[:-1]]
        found[f"hosts {text[:9]!r}"] = (words, lambda text=text: Path("hosts").write_text(text))
    return found


ATTACKS = attacks()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_careless_use_is_done_or_refused_in_a_sentence(place: Path, name: str) -> None:
    words, surround = ATTACKS[name]
    code, said = attempt(place, words, surround)
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    assert "fault of llmforge" not in said
    assert "\x1b" not in said
    if code == 1:
        assert "error: " in said


@pytest.mark.parametrize("file", LARGE)
def test_a_file_of_absurd_size_is_refused_by_its_size(place: Path, file: str) -> None:
    code, said = attempt(place, out(LARGE[file], "OUT"), large(file))
    assert code == 1
    assert Path(file).name in said


@pytest.mark.parametrize("value", TEMPERATURES)
def test_temperatures_beyond_float32_are_refused(place: Path, value: str) -> None:
    code, said = call(
        [*GENERATE.replace("model model", f"model {place}/model").split(), "--temperature", value]
    )
    assert code == (0 if float(value) == 0 else 2), said
    assert "fault of llmforge" not in said
