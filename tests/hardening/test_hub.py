"""Names on the Hugging Face Hub: from a cache prepared as huggingface_hub lays it out, and from a Hub on loopback that
answers as the real one does.
"""

import hashlib
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmforge import hub
from llmforge.errors import UserError

COMMIT, OLDER = "a1" * 20, "b2" * 20
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there


def cached(home: Path, name: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """Puts `files` into the cache below `home` as huggingface_hub does: blobs, links to them, and a reference."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    for file, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = folder / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + file.count("/")), "blobs", blob.name))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return folder / "snapshots" / commit


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def repository(tiny_model: Path) -> dict[str, bytes]:
    """The tiny model with everything else that a repository has: copies of the weights in other formats, folders."""
    more = dict.fromkeys(
        (
            "pytorch_model.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "consolidated.safetensors",
            "model.fp16.safetensors",
            "onnx/model.onnx",
            "onnx/config.json",
            "original/consolidated.00.pth",
            "README.md",
        ),
        b"of no use here" * 1000,
    )
    return {**contents(tiny_model), "LICENSE": b"Apache", **more}


class Hub(http.server.ThreadingHTTPServer):
    """A Hub with one model, `org/tiny`, which is at COMMIT and was at OLDER under the tag v1; `org/closed` is gated."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if "org/closed" in path:
            return self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if "org/tiny" not in path:
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        commits = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
        if found := re.fullmatch(r"/api/models/org/tiny(?:/revision/(.+))?", path):
            commit = commits.get(found[1] or "main")
            if commit is None:
                return self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
            info = {
                "id": "org/tiny",
                "sha": commit,
                "siblings": [{"rfilename": name} for name in self.server.files],
            }
            return self._send(200, json.dumps(info).encode(), body)
        if found := re.fullmatch(r"/api/models/org/tiny/tree/([^/]+)", path):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), body)
        found = re.fullmatch(r"/org/tiny/resolve/([^/]+)/(.+)", path)
        if found and found[2] in self.server.files:
            data = self.server.files[found[2]]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commits[found[1]]}
            return self._send(200, data, body, headers)
        return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})

    def _send(self, code: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def server(repository: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(dict(repository))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with an empty cache of the Hub that `snapshot` reads."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def snapshot(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    name: str,
    kind: hub.Kind = "model",
    endpoint: str = "",
    offline: bool = True,
) -> Path:
    """`hub.local` in a process whose environment had HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE set from its start."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.hf_api import HfApi

    for module in (constants, file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(module, "ENDPOINT", endpoint or NOWHERE)
        monkeypatch.setattr(
            module,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            (endpoint or NOWHERE) + "/{repo_id}/resolve/{revision}/{filename}",
        )
    assert HfApi().endpoint == (endpoint or NOWHERE)
    hub._snapshot.cache_clear()
    return hub.local(Path(name), kind)


def test_what_is_a_name_and_what_is_a_path(place: Path) -> None:
    assert hub.parse("org/name") == hub.Name("org/name", "main")
    assert hub.parse(Path("org/name@v1.0")) == hub.Name("org/name", "v1.0")
    assert hub.parse("Qwen/Qwen2.5-0.5B@refs/pr/3") == hub.Name("Qwen/Qwen2.5-0.5B", "refs/pr/3")
    for path in (
        "name",
        "/org/name",
        "./org/name",
        "../name",
        "a/b/c",
        "org/name@",
        "org--x/name",
        "org/-x",
        "组/名",
    ):
        assert hub.parse(path) is None, path
    Path("models").mkdir()
    assert hub.parse("models/smolm2") is None, "mistyped in a directory that is there"
    Path("org").mkdir()
    Path("org/name").mkdir()
    assert hub.parse("org/name") is None


def test_a_snapshot_in_the_cache_is_read_without_a_network(place, repository, monkeypatch) -> None:
    directory = cached(place / "home", "org/tiny", repository)
    assert snapshot(monkeypatch, place / "home", "org/tiny") == directory
    assert snapshot(monkeypatch, place / "home", f"org/tiny@{COMMIT}", offline=False) == directory
    assert hub.name_of(directory) == f"org/tiny@{COMMIT}"
    assert hub.title(directory) == f"org/tiny@{COMMIT[:7]}"
    assert hub.name_of(place) is None


@pytest.mark.parametrize("offline", [True, False])
def test_offline_and_not_cached_is_one_sentence_at_once(offline, place, monkeypatch) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="org/absent is not a local path and is not in the cache") as refused:
        snapshot(monkeypatch, place / "home", "org/absent", offline=offline)
    assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in str(refused.value)
    assert time.monotonic() - began < 10


def test_a_part_of_a_model_in_the_cache_is_not_a_model(place, repository, monkeypatch) -> None:
    small = {name: data for name, data in repository.items() if hub.is_small(name)}
    cached(place / "home", "org/tiny", small)
    with pytest.raises(UserError, match="only partly in the cache"):
        snapshot(monkeypatch, place / "home", "org/tiny")
    assert snapshot(monkeypatch, place / "home", "org/tiny", "tokenizer").name == COMMIT


def test_a_model_is_fetched_without_copies_of_its_weights(place, server, monkeypatch) -> None:
    directory = snapshot(monkeypatch, place / "home", "org/tiny", endpoint=server.address, offline=False)
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"} <= names
    assert not {name for name in names if "/" in name or name.endswith((".bin", ".h5", ".msgpack", ".md"))}
    assert not {"consolidated.safetensors", "model.fp16.safetensors"} & names
    assert snapshot(monkeypatch, place / "home", "org/tiny") == directory, "and then it is in the cache"
    tag = snapshot(monkeypatch, place / "home", "org/tiny@v1", endpoint=server.address, offline=False)
    assert hub.name_of(tag) == f"org/tiny@{OLDER}"


def test_a_tokenizer_is_fetched_without_weights(place, server, monkeypatch) -> None:
    directory = snapshot(monkeypatch, place / "home", "org/tiny", "tokenizer", server.address, offline=False)
    assert not list(directory.glob("*.safetensors"))
    assert (directory / "tokenizer.json").is_file()


def test_shards_are_fetched_as_the_index_names_them(place, server, monkeypatch) -> None:
    shards = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    del server.files["model.safetensors"]
    server.files.update({**shards, "model.safetensors.index.json": json.dumps(index).encode()})
    server.files["model-00003-of-00003.safetensors"] = b"of another saving"
    directory = snapshot(monkeypatch, place / "home", "org/tiny", endpoint=server.address, offline=False)
    assert {path.name for path in directory.glob("*.safetensors")} == set(shards)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="only partly"):
        snapshot(monkeypatch, place / "home", "org/tiny")
    index["weight_map"]["b"] = "../../evil.safetensors"
    server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    shutil.rmtree(place / "home")
    with pytest.raises(UserError, match="outside its directory"):
        snapshot(monkeypatch, place / "home", "org/tiny", endpoint=server.address, offline=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("org/absent", "org/absent is neither a local path nor a model on"),
        ("org/tiny@v9", "org/tiny has no revision v9"),
        ("org/closed", "request access"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(name, sentence, place, server, monkeypatch) -> None:
    with pytest.raises(UserError, match=sentence):
        snapshot(monkeypatch, place / "home", name, endpoint=server.address, offline=False)


def test_a_hub_that_cannot_be_reached_leaves_the_cache(place, repository, monkeypatch, capsys) -> None:
    directory = cached(place / "home", "org/tiny", repository)
    assert snapshot(monkeypatch, place / "home", "org/tiny", offline=False) == directory
    assert "from the cache" in capsys.readouterr().err


def test_commands_take_names_and_manifests_keep_the_commit(llmforge, place, server, tmp_path) -> None:
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text('{"piece": "\u732b"}\n', encoding="utf-8")
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text('{"text": "the cat sat on the mat"}\n' * 5)
    online = {"HF_HOME": str(place / "home"), "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0"}
    llmforge(
        *("init-tokenizer", "--source-tokenizer-dir", "org/tiny", "--expand-tokens-file", pieces),
        *("--target-tokenizer-dir", "tokenizer"),
        **online,
    )
    inputs = json.loads(Path("tokenizer/llmforge.json").read_text())["inputs"]
    assert {one.get("name") for one in inputs} == {f"org/tiny@{COMMIT}", None}
    compared = llmforge("compare-tokenizers", "org/tiny", "tokenizer", "--corpus", corpus, "--json", **online)
    assert json.loads(compared.stdout)[0]["tokenizer"] == f"tiny@{COMMIT[:7]}"
    llmforge("export", "--checkpoint", "org/tiny@v1", "--output-dir", "exported", **online)
    (source,) = json.loads(Path("exported/llmforge.json").read_text())["inputs"]
    assert source["name"] == f"org/tiny@{OLDER}"
    assert not Path("exported/model.safetensors").is_symlink()
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    again = llmforge("export", "--checkpoint", "org/tiny@v1", "--output-dir", "exported", **offline)
    assert "already done" in again.stdout
    refused = llmforge("generate", "--model", "org/absent", "--prompt", "a", code=1, **offline)
    assert "org/absent is not a local path" in refused.stderr
    mistyped = llmforge("generate", "--model", "exported/modelling", "--prompt", "a", code=1, **online)
    assert "exported/modelling is not a Hugging Face model directory: it does not exist" in mistyped.stderr
