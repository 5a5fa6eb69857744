"""A small server on this machine that answers what `huggingface_hub` asks of the real one to create, upload and read.

Repositories are kept in memory, a dict of files for each commit. Large files go by LFS, as on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN, LARGE = "hf_of_a_test", (".safetensors", ".hdf5", ".bin")


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        now = {**(self.commits[self.head] if self.commits else {}), **files}
        digest = hashlib.sha1(repr((len(self.commits), sorted(now.items()))).encode()).hexdigest()
        self.commits[digest] = now
        return digest


@dataclass
class Hub:
    """What it holds and was asked.

    Attributes:
        repositories: by kind and name.
        large: what LFS holds, by hash.
        asked: requests, in order.
        downloaded: files, in order.
        breaks: files in which the line breaks, after so many bytes.
        address: of the server.
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    downloaded: list[str] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)
    address: str = ""


def entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    sha = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 130}} if is_large(name) else {}
    blob = hashlib.sha1(content).hexdigest()
    return {"size": len(content), "blobId": blob, "oid": blob, "path": name, "rfilename": name, "type": "file", **lfs}


def is_large(name: str) -> bool:
    return name.endswith(LARGE)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups(), body)
        self.reply(404, {"error": f"the fake hub does not know {self.command} {path}"})

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def reply(self, status: int, value: Any = None, **headers: str) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, said in headers.items():
            self.send_header(name.replace("_", "-"), said)
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def repository(self, kind: str, name: str) -> Repository | None:
        """The repository, or None after the answer that it is not there, or not for this client."""
        held = self.hub.repositories.get((kind.removesuffix("s"), name))
        if held is None or (held.private and not self.known):
            status = 404 if self.known else 401
            return self.reply(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if held.gated and not self.known:
            return self.reply(401, {"error": "gated"}, X_Error_Code="GatedRepo")
        return held

    def files(self, held: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = held.head if revision in ("", "main") else held.tags.get(revision, revision)
        if sha not in held.commits:
            return self.reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return sha, held.commits[sha]

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if not self.known:
            return self.reply(401, {"error": "Invalid username or password."})
        if asked["organization"] != "someone":
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        key = (asked.get("type") or "model", f"{asked['organization']}/{asked['name']}")
        place = "datasets/" if key[0] == "dataset" else ""
        there = key in self.hub.repositories
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories.setdefault(key, Repository(private)).commits.setdefault("0" * 40, {})
        self.reply(409 if there else 200, {"url": f"{self.hub.address}/{place}{key[1]}"})

    def preupload(self, kind: str, name: str, revision: str, body: bytes) -> None:
        if self.repository(kind, name):
            modes = {True: "lfs", False: "regular"}
            files = [{"path": f["path"], "uploadMode": modes[is_large(f["path"])]} for f in json.loads(body)["files"]]
            self.reply(200, {"files": [{**file, "shouldIgnore": False} for file in files]})

    def batch(self, body: bytes) -> None:
        def answered(asked: dict[str, Any]) -> dict[str, Any]:
            there = asked["oid"] in self.hub.large
            return (
                asked if there else {**asked, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}}
            )

        self.reply(200, {"transfer": "basic", "objects": [answered(one) for one in json.loads(body)["objects"]]})

    def store(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.reply(200)

    def commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
        held = self.repository(kind, name)
        if held is None:
            return
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = held.commit(files)
        self.reply(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha})

    def tag(self, kind: str, name: str, revision: str, body: bytes) -> None:
        held, tag = self.repository(kind, name), json.loads(body)["tag"]
        if held is None or (found := self.files(held, revision)) is None:
            return
        if tag in held.tags:
            return self.reply(409, {"error": "Tag reference exists already"})
        held.tags[tag] = found[0]
        self.reply(200)

    def untag(self, kind: str, name: str, tag: str, body: bytes) -> None:
        if held := self.repository(kind, name):
            if held.tags.pop(tag, None) is None:
                return self.reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            self.reply(200)

    def info(self, kind: str, name: str, revision: str | None, body: bytes) -> None:
        if (held := self.repository(kind, name)) and (found := self.files(held, revision or "")):
            listed = [entry(*file) for file in found[1].items()]
            self.reply(200, {"id": name, "sha": found[0], "private": held.private, "tags": [], "siblings": listed})

    def tree(self, kind: str, name: str, revision: str, body: bytes) -> None:
        if (held := self.repository(kind, name)) and (found := self.files(held, revision)):
            self.reply(200, [entry(*file) for file in found[1].items()])

    def download(self, kind: str | None, name: str, revision: str, file: str, body: bytes) -> None:
        held = self.repository(kind or "models", name)
        if held is None or (found := self.files(held, revision)) is None:
            return
        sha, files = found
        if file not in files:
            return self.reply(404, None, X_Error_Code="EntryNotFound")
        content, told = files[file], entry(file, files[file])
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.hub.downloaded += [file] if self.command == "GET" else []
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{told["lfs"]["sha256"] if "lfs" in told else told["blobId"]}"')
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if file in self.hub.breaks:
                self.wfile.write(content[begin : begin + self.hub.breaks[file]])
                self.close_connection = True
                return None
            self.wfile.write(content[begin:])


ID = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", lambda self, body: self.reply(200, {"errors": [], "warnings": []})),
    ("POST", rf"/api/(models|datasets)/{ID}/preupload/(\w+)", Handler.preupload),
    ("POST", r"/(?:datasets/)?[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.store),
    ("POST", rf"/api/(models|datasets)/{ID}/commit/(\w+)", Handler.commit),
    ("POST", rf"/api/(models|datasets)/{ID}/tag/(\w+)", Handler.tag),
    ("DELETE", rf"/api/(models|datasets)/{ID}/tag/([\w.-]+)", Handler.untag),
    ("GET", rf"/api/(models|datasets)/{ID}(?:/revision/([\w.-]+))?", Handler.info),
    ("GET", rf"/api/(models|datasets)/{ID}/tree/(\w+)", Handler.tree),
    *((method, rf"/(?:(datasets)/)?{ID}/resolve/(\w+)/(.+)", Handler.download) for method in ("GET", "HEAD")),
]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """A hub that `huggingface_hub` talks to inside, logged in, with its caches in a folder of the test."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    point_at(monkeypatch, hub.address, cache)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, address: str, cache: str) -> None:
    """Let `huggingface_hub` of this process talk to `address`, which it reads from the environment when imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
