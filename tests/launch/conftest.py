"""Two hosts with their own sshd, a dataset, and the command that trains on it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def sshd() -> Path:
    """The system's sshd, or the one of the Debian package, unpacked."""
    if found := shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin"):
        return Path(found)
    from real_inputs import fetch

    try:
        return fetch("sshd") / "usr" / "sbin" / "sshd"
    except (SystemExit, OSError) as error:
        pytest.skip(f"no sshd here, and Debian's package cannot be fetched: {error}")


@pytest.fixture
def hosts(sshd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from two_hosts import two_hosts

    if not shutil.which("ssh"):
        pytest.skip("no ssh client here")
    with two_hosts(sshd, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def workplace(llmforge: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space and Chinese characters in its name; in it `model` and the dataset `语料 data`."""
    place = tmp_path_factory.mktemp("launch") / "工作 place"
    corpus = place / "corpus"
    corpus.mkdir(parents=True)
    shutil.copytree(tiny_model, place / "model")
    lines = [{"target": f"the cat number {i} sat on the hat and the rat ate {i * i}"} for i in range(300)]
    (corpus / "en.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--data-input-dirs", corpus, "--tokenizer-dir", place / "model", "--max-length", 64]
    llmforge(
        "prepare-data", *words, "--num-spliced-dataset-bins", 2, "--data-output-dir", place / "语料 data"
    )
    return place


@pytest.fixture(scope="session")
def flags() -> list[str]:
    """The training, the same whoever launches it: relative paths, a few dozen steps."""
    return [
        *("train", "--pretrained", "model", "--dataset", "语料 data", "--mixed-precision", "fp32"),
        *("--lr", "1e-2", "--plugin", "ddp", "--save-interval", "0", "--skip-save-each-epoch"),
    ]
