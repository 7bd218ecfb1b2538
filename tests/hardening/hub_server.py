"""A Hugging Face Hub on this machine: as much of its HTTP interface as `datasets` needs to read a data set."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


class Hub(ThreadingHTTPServer):
    """`data_sets` has of each name its revisions, newest first, and of each the files by path. `breaks` says how often the
    connection ends in the middle of a file that `breaking` names, `forbids` whether it is refused after that; `requests` is
    what was asked.
    """

    daemon_threads = True

    def __init__(self, data_sets: Mapping[str, Mapping[str, Files]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data_sets = data_sets
        self.breaking, self.breaks, self.forbids = "", 0, False
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that goes away is none of ours."""


def commit_of(files: Files) -> str:
    """What a revision of these files is called."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        words = path.strip("/").split("/")
        api = words[0] == "api"
        words = words[api:]
        name = "/".join(words[1:3])
        if words[0] != "datasets" or name not in self.server.data_sets:
            self._send(401, {"error": "Invalid username or password."}, with_body)
            return
        revisions, rest = self.server.data_sets[name], words[3:]
        revision = rest[1] if len(rest) > 1 else "main"
        commits = {commit_of(files): files for files in revisions.values()}
        known = {"main": next(iter(revisions.values())), **revisions, **commits}
        if revision not in known:
            error = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
            self._send(404, {"error": error["X-Error-Message"]}, with_body, error)
            return
        files = known[revision]
        below = "/".join(rest[2:])
        if not api:
            self._send_file(files, below, with_body)
            return
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": file} for file in files]
            info = {"_id": "1", "id": name, "sha": commit_of(files), "siblings": siblings, "tags": []}
            private = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
            self._send(200, {**info, **private}, with_body)
            return
        entries = {file: _entry(file, data) for file, data in files.items()}
        for file in files:
            for folder in (file.rsplit("/", n)[0] for n in range(1, file.count("/") + 1)):
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if rest[0] == "paths-info":
            wanted = json.loads(self.body)["paths"]
            self._send(200, [entries[one] for one in wanted if one in entries], with_body)
            return
        assert rest[0] == "tree"
        inside = f"{below}/" if below else ""
        found = [entry for path, entry in entries.items() if path.startswith(inside)]
        if "recursive=true" not in self.path.lower():
            found = [entry for entry in found if "/" not in str(entry["path"])[len(inside) :]]
        missing = {"X-Error-Code": "EntryNotFound"}
        self._send(200 if found else 404, found, with_body, {} if found else missing)

    def _send_file(self, files: Files, path: str, with_body: bool) -> None:
        if path not in files:
            self._send(404, {"error": "Entry not found"}, with_body, {"X-Error-Code": "EntryNotFound"})
            return
        if path == self.server.breaking and self.server.forbids and not self.server.breaks:
            self._send(403, {"error": "Forbidden"}, with_body)
            return
        whole = files[path]
        headers = {
            "ETag": f'"{hashlib.sha1(whole).hexdigest()}"',
            "X-Repo-Commit": commit_of(files),
            "Accept-Ranges": "bytes",
        }
        begin, end, status = 0, len(whole), 200
        if given := self.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            begin, end, status = int(first), min(int(last or end) + 1, end), 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(whole)}"
            if begin >= len(whole):
                self._send(416, {}, with_body, {"Content-Range": f"bytes */{len(whole)}"})
                return
        self._send(status, whole[begin:end], with_body, headers, path)

    def _send(
        self,
        status: int,
        body: object,
        with_body: bool,
        headers: Mapping[str, str] | None = None,
        path: str = "",
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if path else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if path and path == self.server.breaking and self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
