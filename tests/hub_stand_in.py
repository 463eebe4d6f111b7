"""A stand-in of the Hugging Face Hub over real HTTP: repositories, uploads of large files, commits, and its bad days.

It answers what `huggingface_hub` asks for to create a repository, upload and commit, checks every hash, and can refuse,
cut or hold the requests that a `Fault` names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

WRITE, READ = "hf_" + "w" * 30, "hf_" + "r" * 30  # tokens of the user zoe
OWNER = "zoe"
LARGE = (".safetensors", ".gguf", ".bin")
REPO = r"/api/(?P<kind>model|space)s/(?P<repo>[\w.-]+/[\w.-]+)"
BLOCK = 4096


@dataclass
class Fault:
    """What happens to the requests whose method and path match, `times` times.

    A number is answered as status; "cut" closes the connection, "hold" says so in `held` and reads no
    more until it is `released`. Both do so after `after_bytes` of the body.
    """

    what: int | Literal["cut", "hold"]
    request: str
    after_bytes: int = 0
    times: int = 1
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Repository:
    """A repository: its visibility, its files at the newest commit, and the messages of its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(self.messages).encode()).hexdigest()


@dataclass
class Hub:
    """The state of the stand-in, and what it was asked."""

    part_bytes: int | None = None
    faults: list[Fault] = field(default_factory=list)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)  # the sha256 of each large file, every time that it arrived whole
    url: str = ""
    mutex: threading.RLock = field(default_factory=threading.RLock)

    def model(self, repo: str) -> Repository:
        return self.repositories["model", repo]

    def writes(self) -> list[str]:
        return [asked for asked in self.requests if not asked.startswith("GET")]


class CutError(Exception):
    """The connection is to be closed without an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def handle_any(self) -> None:
        path = self.path.partition("?")[0]
        asked = f"{self.command} {path}"
        self.hub.requests.append(asked)
        fault = self.fault_for(asked)
        try:
            body = self.body(fault)
            if fault is not None and isinstance(fault.what, int):
                self.answer(fault.what, {"error": "the stand-in was told to refuse"})
                return
            with self.hub.mutex:
                self.route(path, body)
        except (CutError, ConnectionError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def fault_for(self, asked: str) -> Fault | None:
        with self.hub.mutex:
            for fault in self.hub.faults:
                if fault.times and re.search(fault.request, asked):
                    fault.times -= 1
                    return fault
        return None

    def body(self, fault: Fault | None) -> bytes:
        """Read the body, or as much of it as the fault lets through."""
        length = int(self.headers.get("Content-Length") or 0)
        whole = fault is None or isinstance(fault.what, int)
        wanted = length if whole or fault is None else min(length, fault.after_bytes)
        found = bytearray()
        while len(found) < wanted:
            block = self.rfile.read(min(BLOCK, wanted - len(found)))
            if not block:
                raise CutError
            found += block
        if fault is not None and not whole:
            fault.held.set()
            if fault.what == "hold":
                fault.released.wait(timeout=600)
            raise CutError
        return bytes(found)

    def route(self, path: str, body: bytes) -> None:
        routes: dict[str, Callable[..., None]] = {
            r"/api/whoami-v2": self.whoami,
            r"/api/repos/create": self.create,
            r"/api/validate-yaml": self.validate,
            REPO + r"(/revision/(?P<revision>\w+))?": self.info,
            REPO + r"/preupload/main": self.preupload,
            REPO + r"/commit/main": self.commit,
            r"/(?P<kind>spaces/)?(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": self.batch,
            r"/lfs/(?P<oid>\w{64})/(?P<part>\d+)": self.receive,
            r"/lfs/(?P<oid>\w{64})/(?P<part>complete|verify)": self.close_upload,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, path):
                answer(body, **found.groupdict())
                return
        self.answer(404, {"error": f"the stand-in has no {path}"})

    # --- who asks

    def may(self, *, write: bool, repo: str = OWNER + "/") -> bool:
        """Return whether the token may do that; if not, the answer is sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (READ, WRITE):
            self.answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": INVALID})
            return False
        if write and (token == READ or not repo.startswith(f"{OWNER}/")):
            self.answer(403, {"error": "no write access"}, {"X-Error-Message": "You have no write access"})
            return False
        return True

    def whoami(self, body: bytes) -> None:
        if self.may(write=False):
            self.answer(200, {"name": OWNER, "type": "user"})

    # --- repositories

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
        key = (asked.get("type") or "model", repo)
        if not self.may(write=True, repo=repo):
            return
        if key in self.hub.repositories:
            self.answer(409, {"error": "You already created this repo"})
            return
        is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[key] = Repository(private=is_private)
        self.answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        fine = content.startswith("---\n") and "\n---\n" in content
        errors = [] if fine else [{"message": "no metadata"}]
        self.answer(200 if fine else 400, {"errors": errors, "warnings": []})

    def found(self, kind: str, repo: str) -> Repository | None:
        """Return a repository; without one that the token may see, the answer is sent."""
        if self.headers.get("Authorization") and not self.may(write=False):
            return None
        there = self.hub.repositories.get((kind, repo))
        if there is None or (there.private and not self.headers.get("Authorization")):
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return there

    def info(self, body: bytes, kind: str, repo: str, revision: str | None) -> None:
        there = self.found(kind, repo)
        if there is None:
            return
        siblings = [described(name, content) for name, content in there.files.items()]
        self.answer(200, {"id": repo, "sha": there.commit, "private": there.private, "siblings": siblings, "tags": []})

    def preupload(self, body: bytes, kind: str, repo: str) -> None:
        there = self.found(kind, repo)
        if there is None or not self.may(write=True, repo=repo):
            return
        files = []
        for asked in json.loads(body)["files"]:
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            one = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            if asked["path"] in there.files:
                content = there.files[asked["path"]]
                one["oid"] = hashlib.sha256(content).hexdigest() if mode == "lfs" else git_sha1(content)
            files.append(one)
        self.answer(200, {"files": files})

    def commit(self, body: bytes, kind: str, repo: str) -> None:
        there = self.found(kind, repo)
        if there is None or not self.may(write=True, repo=repo):
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, there.commit):
            self.answer(412, {"error": "A commit has happened since"})
            return
        files = dict(there.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                self.answer(400, {"error": f"cannot commit {line['key']} {value['path']}"})
                return
        there.files = files
        there.messages.append(header["summary"])
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{there.commit}", "commitOid": there.commit})

    # --- large files

    def batch(self, body: bytes, kind: str | None, repo: str) -> None:
        if not self.may(write=True, repo=repo):
            return
        objects = []
        for asked in json.loads(body)["objects"]:
            one: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                one["actions"] = self.actions(asked["oid"], asked["size"])
            objects.append(one)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def actions(self, oid: str, size: int) -> dict[str, Any]:
        place, part = f"{self.hub.url}/lfs/{oid}", self.hub.part_bytes
        verify = {"href": f"{place}/verify"}
        if part is None or size <= part:
            return {"upload": {"href": f"{place}/0"}, "verify": verify}
        numbers = range(1, -(-size // part) + 1)
        header = {"chunk_size": str(part), **{str(number): f"{place}/{number}" for number in numbers}}
        return {"upload": {"href": f"{place}/complete", "header": header}, "verify": verify}

    def receive(self, body: bytes, oid: str, part: str) -> None:
        if part == "0":
            self.keep(oid, body)
            return
        self.hub.parts.setdefault(oid, {})[int(part)] = body
        self.answer(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def close_upload(self, body: bytes, oid: str, part: str) -> None:
        if part == "complete":
            parts = self.hub.parts.pop(oid)
            self.keep(oid, b"".join(parts[number] for number in sorted(parts)))
        elif oid in self.hub.objects and len(self.hub.objects[oid]) == json.loads(body)["size"]:
            self.answer(200, {})
        else:
            self.answer(404, {"error": "no such object"})

    def keep(self, oid: str, content: bytes) -> None:
        """Store a large file that arrived whole, if it is what its name says."""
        if hashlib.sha256(content).hexdigest() != oid:
            self.answer(400, {"error": "the sha256 differs"})
            return
        self.hub.objects[oid] = content
        self.hub.arrived.append(oid)
        self.answer(200, {})

    def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        own = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, text in {**own, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


INVALID = "Invalid credentials in Authorization header"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def described(name: str, content: bytes) -> dict[str, Any]:
    """Return what the Hub tells of a file; of a large one, its sha256."""
    found: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
    if name.endswith(LARGE):
        found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


@contextmanager
def serving(**options: Any) -> Iterator[Hub]:
    """Run a stand-in in a thread of this process."""
    hub = Hub(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = hub  # type: ignore[attr-defined]
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
