"""A Hugging Face Hub on localhost: repositories of models and datasets, in memory.

    with LocalHub() as hub:
        hub.write("org/name", {"config.json": b"{}"})            # a commit on main, from outside
        run(..., env={**os.environ, **hub.environment(tmp_path)})   # a process that finds it
        hub.read("org/name", "step-00000010")["config.json"]
        hub.fail("PUT /lfs/", status=503, times=2)                # and the other faults
        hub.requests                                              # "METHOD /path", in order

It answers what `huggingface_hub` asks when files are uploaded over LFS, which
`HF_HUB_DISABLE_XET=1` makes it do, and when they are downloaded. `hub.tokens` says who may write
where; repositories are made by commits and `create_repo`.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from support.hub_settings import use_hub

TOKEN = "hf_planted-token"
READ_ONLY_TOKEN = "hf_planted-token-for-reading"
_LARGE_BYTES = 1 << 20  # is stored apart, as every file of weights
_DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Fault:
    """What goes wrong with requests; `times` counts how often it still does."""

    request: re.Pattern[str]  # found in "METHOD /path"
    times: float
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the request's body, then the connection is reset
    hangs: bool = False  # no answer until the server ends
    message: str = "a planted fault"


@dataclass(frozen=True)
class Commit:
    """Files by path, what was said of them, and the commit before."""

    id: str
    title: str
    message: str
    files: Mapping[str, bytes]
    parent: "Commit | None"


@dataclass
class Repository:
    """Refs to commits by name."""

    is_private: bool
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        refs = {**self.tags, **self.branches}
        commits = {commit.id: commit for ref in refs.values() for commit in _list_history(ref)}
        return refs.get(revision) or commits.get(revision)


class LocalHub:
    """Serves repositories by `models/org/name` or `datasets/org/name`; use as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.tokens = {TOKEN: {"someone", "org"}, READ_ONLY_TOKEN: set()}  # may write below these
        self.requests: list[str] = []
        self.released = threading.Event()
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The variables with which a process uses this Hub, with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0", "HF_TOKEN": token or "",
        }  # fmt: skip

    def use_here(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Let this process use it, though the library has read its environment already."""
        use_hub(self.url, str(home), partial(monkeypatch.setattr, raising=False))
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def fail(self, request: str, times: float = float("inf"), **fault: Any) -> None:
        """From now on spoil the requests that a pattern is found in, so many `times`."""
        self._faults.append(Fault(re.compile(request), times, **fault))

    def heal(self) -> None:
        """Answer all requests as they should be, also those that hang."""
        self._faults.clear()
        self.released.set()
        self.released = threading.Event()

    def take(self, request: str) -> Fault | None:
        """Note a request, and return what goes wrong with it."""
        with self.lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and fault.request.search(request):
                    fault.times -= 1
                    return fault
        return None

    def write(
        self, repository: str, files: Mapping[str, bytes], revision: str = "main",
        title: str = "from outside", message: str = "", removed: frozenset[str] = frozenset(),
    ) -> str:  # fmt: skip
        """Commit files to a branch, made where it is missing; returns the id of the commit."""
        with self.lock:
            repo = self.create(repository)
            parent = repo.branches.get(revision, repo.branches["main"])
            kept = {path: data for path, data in parent.files.items() if path not in removed}
            repo.branches[revision] = _commit(title, {**kept, **files}, parent, message)
            return repo.branches[revision].id

    def create(self, repository: str, is_private: bool = False) -> Repository:
        """Make a repository unless it is there, with the commit that every one begins with."""
        begin = _commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}, None)
        new = Repository(is_private, {"main": begin})
        return self.repositories.setdefault(_name(repository), new)

    def read(self, repository: str, revision: str = "main") -> Mapping[str, bytes]:
        """The files of a revision."""
        commit = self.repositories[_name(repository)].find(revision)
        assert commit is not None, f"{repository} has no {revision}"
        return commit.files

    def titles(self, repository: str, revision: str = "main") -> list[str]:
        """What the commits of a branch are called, newest first."""
        branch = self.repositories[_name(repository)].branches[revision]
        return [commit.title for commit in _list_history(branch)]

    def branches(self, repository: str) -> set[str]:
        """The names of the branches; none where there is no repository."""
        repo = self.repositories.get(_name(repository))
        return set() if repo is None else set(repo.branches)


def _name(repository: str) -> str:
    return repository if repository.startswith(("models/", "datasets/")) else f"models/{repository}"


def _commit(
    title: str, files: Mapping[str, bytes], parent: Commit | None, message: str = ""
) -> Commit:
    content = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
    seed = repr((title, message, content, parent and parent.id))
    return Commit(hashlib.sha1(seed.encode()).hexdigest(), title, message, dict(files), parent)


def _list_history(commit: Commit | None) -> list[Commit]:
    return [] if commit is None else [commit, *_list_history(commit.parent)]


def _is_large(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".parquet", ".bin")) or size >= _LARGE_BYTES


def _hash(path: str, data: bytes) -> str:
    """As the Hub names contents: sha256 of what is stored apart, git's own hash of the rest."""
    if _is_large(path, len(data)):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _describe(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _hash(path, data)}
    if _is_large(path, len(data)):
        entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 134}
    return entry


def _list_tree(commit: Commit, folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    below = {
        p: data for p, data in commit.files.items() if not folder or p.startswith(f"{folder}/")
    }
    if not below:
        raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
    depth = folder.count("/") + 2 if folder else 1
    folders = {str(parent) for path in below for parent in PurePosixPath(path).parents[:-1]}
    entries = [_describe(path, data) for path, data in below.items()]
    entries += [
        {
            "type": "directory",
            "path": path,
            "oid": hashlib.sha1(path.encode()).hexdigest(),
            "size": 0,
        }
        for path in folders
        if path.startswith(f"{folder}/" if folder else "")
    ]
    return [e for e in entries if is_recursive or e["path"].count("/") + 1 == depth]


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the game."""


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.server.hub.take(f"{self.command} {path}")
        if fault is not None and fault.hangs:
            self.server.hub.released.wait()
            self.close_connection = True
            return
        body = self._read_body(None if fault is None else fault.drop_after)
        if body is None:
            return
        try:
            if fault is not None and fault.status is not None:
                raise _Refusal(fault.status, fault.message)
            self._route(path, body)
        except _Refusal as refusal:
            headers = {"X-Error-Message": str(refusal), **(fault.headers if fault else {})}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send(refusal.status, {"error": str(refusal)}, headers)

    def _read_body(self, drop_after: int | None) -> bytes | None:
        """The body of the request; None once the connection was reset."""
        if drop_after is not None:
            self.rfile.read(drop_after)
            # Without lingering, closing sends RST in place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        length = {"Content-Length": str(len(data))}
        for name, text in {**length, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # What is asked, by its path.

    def _route(self, path: str, body: bytes) -> None:
        hub = self.server.hub
        if self._token and self._token not in hub.tokens and not path.startswith("/lfs/"):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self._check_login()
            orgs = [{"name": name} for name in hub.tokens[self._token] - {"someone"}]
            self._send(200, {"type": "user", "name": "someone", "orgs": orgs})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.startswith("/lfs/"):
            self._store(path.removeprefix("/lfs/"), body)
        elif found := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(.*))?", path):
            with hub.lock:
                self._use_repository(found[1], found[2] or "", body)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._check_write(f"{found[1] or 'models/'}{found[2]}")
            self._send(200, self._plan_uploads(json.loads(body)["objects"]))
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._download(f"{found[1] or 'models/'}{found[2]}", found[3], found[4])
        else:
            raise _Refusal(404, f"{self.command} {path} is not known here")

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _check_login(self) -> None:
        if self._token not in self.server.hub.tokens:
            raise _Refusal(401, "Invalid username or password.")

    def _check_write(self, name: str) -> None:
        self._check_login()
        owner = name.split("/")[1]
        if owner not in self.server.hub.tokens[self._token]:
            raise _Refusal(403, f"You don't have the rights to write under the namespace {owner}")

    def _create(self, wanted: dict[str, Any]) -> None:
        kind, hub = f"{wanted.get('type', 'model')}s", self.server.hub
        name = f"{kind}/{wanted.get('organization') or 'someone'}/{wanted['name']}"
        self._check_write(name)
        url = f"{hub.url}/{name.removeprefix('models/')}"
        is_private = wanted.get("private") or wanted.get("visibility") == "private"
        with hub.lock:
            is_there = name in hub.repositories
            hub.create(name, is_private)
        if is_there:
            self._send(409, {"error": "You already created this model repo", "url": url})
        else:
            self._send(200, {"url": url, "name": name.partition("/")[2]})

    def _store(self, digest: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            raise _Refusal(400, "the sha256 is another")
        self.server.hub.objects[digest] = body
        self._send(200, b"")

    def _plan_uploads(self, wanted: list[dict[str, Any]]) -> dict[str, Any]:
        hub = self.server.hub
        answers = [{"oid": each["oid"], "size": each["size"]} for each in wanted]
        for answer in answers:
            if answer["oid"] not in hub.objects:
                # As the signed addresses of a store are.
                href = f"{hub.url}/lfs/{answer['oid']}?X-Amz-Signature=planted-signature"
                answer["actions"] = {"upload": {"href": href}}
        return {"transfer": "basic", "objects": answers}

    def _find(self, name: str, revision: str) -> tuple[Repository, Commit]:
        repo = self.server.hub.repositories.get(name)
        if repo is None or (repo.is_private and not self._token):
            raise _Refusal(404 if self._token else 401, "Repository not found", "RepoNotFound")
        commit = repo.find(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit

    def _use_repository(self, name: str, rest: str, body: bytes) -> None:
        action, _, revision = rest.partition("/")
        if action == "branch":
            return self._create_branch(
                name, revision, json.loads(body).get("startingPoint", "main")
            )
        revision, _, folder = revision.partition("/") if action == "tree" else (revision, "", "")
        repo, commit = self._find(name, revision or "main")
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in commit.files]
            described = {"id": name.partition("/")[2], "sha": commit.id, "private": repo.is_private}
            self._send(200, {**described, "siblings": siblings, "tags": [], "downloads": 0})
        elif action == "refs":
            kinds = {"branches": repo.branches, "converts": {}, "tags": repo.tags}
            self._send(200, {
                kind: [{"name": n, "ref": f"refs/{n}", "targetCommit": c.id} for n, c in refs.items()]
                for kind, refs in kinds.items()
            })  # fmt: skip
        elif action == "commits":
            self._send(200, [
                {"id": c.id, "title": c.title, "message": c.message, "date": _DATE, "authors": []}
                for c in _list_history(commit)
            ])  # fmt: skip
        elif action == "tree":
            is_recursive = "recursive=true" in urlsplit(self.path).query.lower()
            self._send(200, _list_tree(commit, folder, is_recursive))
        elif action == "paths-info":
            paths = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            entries = _list_tree(commit, "", is_recursive=True)
            self._send(200, [entry for entry in entries if entry["path"] in paths])
        elif action == "preupload":
            self._check_write(name)
            self._send(200, {"files": [_plan(file, commit) for file in json.loads(body)["files"]]})
        elif action == "commit":
            self._check_write(name)
            self._commit(name, revision, [json.loads(line) for line in body.splitlines()])
        else:
            raise _Refusal(404, f"{self.command} {rest} is not known here")
        return None

    def _create_branch(self, name: str, branch: str, begin: str) -> None:
        self._check_write(name)
        repo, commit = self._find(name, begin)
        if branch in repo.branches:
            raise _Refusal(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = commit
        self._send(200, {})

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        hub, files, removed, header = self.server.hub, {}, set(), {}
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in hub.objects:
                        raise _Refusal(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = hub.objects[value["oid"]]
                case "deletedFile":
                    removed.add(value["path"])
        title, message = header["summary"], header.get("description", "")
        if branch not in hub.repositories[name].branches:
            raise _Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        commit = hub.write(name, files, branch, title, message, frozenset(removed))
        url = f"{hub.url}/{name.removeprefix('models/')}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _download(self, name: str, revision: str, path: str) -> None:
        _, commit = self._find(name, revision)
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        self._send_range(data, {**headers, "ETag": f'"{_hash(path, data)}"'})

    def _send_range(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, data, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], headers)


def _plan(file: dict[str, Any], commit: Commit) -> dict[str, Any]:
    path, is_large = file["path"], _is_large(file["path"], file["size"])
    existing = commit.files.get(path)
    plan = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    return plan if existing is None else {**plan, "oid": _hash(path, existing)}
