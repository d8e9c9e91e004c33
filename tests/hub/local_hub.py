"""A Hub on the loopback interface: the part of the HTTP API that huggingface_hub's client uses for models and Spaces.

The client is the unmodified one, pointed here by `HF_ENDPOINT` (and `HF_HUB_DISABLE_XET=1`: the objects go over LFS).
Requests are answered as huggingface.co answers them, with its status codes, `X-Error-Code` and `X-Repo-Commit`. Large
files live on a "CDN" of another origin, which refuses requests that still carry the token. `LocalHub.fail` makes
chosen requests go wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


# What the Hub's .gitattributes keep out of git.
LARGE = (".safetensors", ".bin", ".parquet", ".png", ".pt", ".pkl")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
IDENTIFIERS = {
    "license": ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "unknown", "other"],
    "pipeline_tag": ["image-segmentation", "mask-generation", "image-classification", "image-feature-extraction"],
    "base_model_relation": ["adapter", "finetune", "merge", "quantized"],
}
API = rf"/api/(?P<kind>model|space|dataset)s/{REPO}"


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes
    large: bool

    @property
    def etag(self) -> str:
        """SHA-256 of a large file, git's SHA-1 of another."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Commits by id, each path -> file; branches by name, each the id of a commit."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], title: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append(title)
        return oid


@dataclass
class Fault:
    """What happens to the next `times` requests whose `"METHOD /path"` matches: one of these.

    Attributes:
        status, headers: the answer, unless another attribute is set.
        cut: the connection ends without an answer.
        lost: the request is done, then the connection ends without an answer.
        cut_after: the connection ends after so many bytes of the content.
        seconds: the answer is late.
    """

    pattern: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1_000_000
    cut: bool = False
    lost: bool = False
    cut_after: int | None = None
    seconds: float = 0.0


class Refused(Exception):
    """Ends a request with an error of the Hub."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class LocalHub:
    """A running server.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        token, read_token: of the user `me`, who may write to the namespaces `me` and `facebook`.
        repositories: by `(kind, id)`.
        requests: `"METHOD /path"` of all requests, in order, with the `Range` that was asked for.
        uploads: paths whose content was sent, regular or large, in order.
    """

    def __init__(self) -> None:
        self.token, self.read_token = "hf_localwritetoken", "hf_localreadtoken"
        self.namespaces = ["me", "facebook"]
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.endpoint, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> LocalHub:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables that point a new process here, with caches under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": self.token if token is None else token,
        }

    def fail(self, pattern: str, status: int = 500, **how: Any) -> Fault:
        """Let requests whose `"METHOD /path"` matches `pattern` fail; see `Fault`."""
        fault = Fault(pattern, status, **how)
        self.faults.append(fault)
        return fault

    def files(self, repo: str, branch: str = "main", kind: str = "model") -> dict[str, bytes]:
        """path -> content at the tip of a branch, without the Hub's own `.gitattributes`."""
        repository = self.repositories[kind, repo]
        files = repository.commits[repository.branches[branch]]
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def add(self, repo: str, files: dict[str, bytes], private: bool = False) -> None:
        """A model repository that is there already."""
        stored = {path: File(content, path.endswith(LARGE)) for path, content in files.items()}
        self.objects |= {file.etag: file.content for file in stored.values() if file.large}
        self.repositories["model", repo] = Repository(private)
        self.repositories["model", repo].commit("main", stored, "files")

    def add_folder(self, repo: str, folder: Path) -> None:
        """`add` with the files at the top of a folder."""
        self.add(repo, {path.name: path.read_bytes() for path in folder.iterdir()})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.cut_after, self.lost = None, False
        path, self.query = address.path, parse_qs(address.query)
        self.body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        try:
            if self._goes_wrong(f"{self.command} {path}"):
                return
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path) if self.command in method.split() else None
                if match:
                    # A branch may hold a slash, which is quoted in the path.
                    groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    with self.hub.lock:
                        answer = action(self, **groups)
                    return self._send(*answer)
            raise Refused(404, f"no such page: {self.command} {path}")
        except Refused as error:
            headers = {"X-Error-Message": error.body["error"]}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self._send(error.status, error.body, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _goes_wrong(self, request: str) -> bool:
        with self.hub.lock:
            fault = next((one for one in self.hub.faults if one.times and re.search(one.pattern, request)), None)
            if fault is None:
                return False
            fault.times -= 1
        if fault.seconds:
            self.hub.stopped.wait(fault.seconds)
            return False
        if fault.cut_after is not None or fault.lost:
            self.cut_after, self.lost = fault.cut_after, fault.lost
            return False
        if fault.cut:
            self._cut()
            return True
        message = {401: "Invalid credentials in Authorization header", 403: "You have no write access"}
        raise_as = Refused(fault.status, message.get(fault.status, f"made to fail ({fault.status})"))
        headers = {"X-Error-Message": raise_as.body["error"], **fault.headers}
        self._send(fault.status, raise_as.body, headers)
        return True

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        if self.lost:
            return self._cut()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(content)), **(headers or {})}
        if not isinstance(body, bytes):
            given["Content-Type"] = "application/json"
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and len(content) > self.cut_after:
            self.wfile.write(content[: self.cut_after])
            self.wfile.flush()
            return self._cut()
        self.wfile.write(content)

    # who is asking

    def _user(self, write: bool = False) -> str | None:
        """`me`, or None for nobody; refuses wrong tokens, and with `write` those that may not."""
        header = self.headers.get("Authorization")
        if header is None:
            if write:
                raise Refused(401, "Invalid username or password.")
            return None
        token = header.removeprefix("Bearer ")
        if token not in (self.hub.token, self.hub.read_token):
            raise Refused(401, "Invalid credentials in Authorization header")
        if write and token == self.hub.read_token:
            raise Refused(403, "This token has no write access: use one with the role `write`")
        return "me"

    def _repository(self, kind: str, repo: str, write: bool = False) -> Repository:
        user = self._user(write)
        found = self.hub.repositories.get((kind, repo))
        if found is None or (found.private and user is None):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, File]]:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    # routes

    def whoami(self) -> tuple:
        if self._user() is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name} for name in self.hub.namespaces[1:]]
        return 200, {"type": "user", "name": "me", "orgs": orgs, "auth": {"type": "access_token"}}

    def create(self) -> tuple:
        asked = json.loads(self.body)
        owner, kind = asked.get("organization") or self._user(write=True), asked.get("type", "model")
        self._user(write=True)
        if owner not in self.hub.namespaces:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}.")
        name = f"{owner}/{asked['name']}"
        where = {"url": f"{self.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            raise Refused(409, f"You already created this {kind} repo", **where)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.repositories[kind, name] = Repository(private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        repository.commit("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit")
        return 200, where

    def validate_yaml(self) -> tuple:
        content = json.loads(self.body)["content"]
        block = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
        if block is None:
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            fine = isinstance(yaml.safe_load(block.group(1)), dict)
        except yaml.YAMLError:
            fine = False
        wrong = metadata_errors(yaml.safe_load(block.group(1))) if fine else ["the metadata are no YAML mapping"]
        if wrong:
            errors = [{"message": message} for message in wrong]
            return 400, {"error": "Bad metadata", "errors": errors, "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def branch(self, kind: str, repo: str, branch: str) -> tuple:
        repository = self._repository(kind, repo, write=True)
        if branch in repository.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = self._files(repository, start)[0]
        return 201, {"success": True}

    def preupload(self, kind: str, repo: str, revision: str) -> tuple:
        _, present = self._files(self._repository(kind, repo, write=True), revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = {"oid": present[path].etag} if path in present else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return 200, {"files": answers}

    def lfs_batch(self, repo: str, kinds: str | None) -> tuple:
        self._repository(kinds[:-1] if kinds else "model", repo, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, entry = asked["oid"], {"oid": asked["oid"], "size": asked["size"]}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.cdn}/upload/{oid}?signature=secret"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/verify"}}
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str) -> tuple:
        if "Authorization" in self.headers:
            raise Refused(400, "the storage must not see the token")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "content and SHA-256 differ")
        self.hub.objects[oid] = self.body
        return 200, b""

    def lfs_verify(self) -> tuple:
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "object not found")
        return 200, {}

    def commit(self, kind: str, repo: str, revision: str) -> tuple:
        repository = self._repository(kind, repo, write=True)
        if revision not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files = dict(self._files(repository, revision)[1])
        title = lines[0]["value"]["summary"]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"{value['path']}: its LFS object was not uploaded")
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            else:
                del files[value["path"]]
                continue
            self.hub.uploads.append(value["path"])
        oid = repository.commit(revision, files, title)
        url = f"{self.hub.endpoint}/{repo}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}

    def info(self, kind: str, repo: str, revision: str | None = None) -> tuple:
        repository = self._repository(kind, repo)
        commit, files = self._files(repository, revision or "main")
        names = [{"rfilename": path} for path in sorted(files)]
        about = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit, "tags": [], "likes": 0}
        return 200, {**about, "private": repository.private, "downloads": 0, "siblings": names}

    def refs(self, kind: str, repo: str) -> tuple:
        branches = self._repository(kind, repo).branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches.items()]
        return 200, {"branches": listed, "tags": [], "converts": []}

    def tree(self, kind: str, repo: str, revision: str, folder: str | None = None) -> tuple:
        _, files = self._files(self._repository(kind, repo), revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            return 200, [_entry(path, file) for path, file in inside.items()]
        folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if path not in files}
        folders |= {prefix + p.removeprefix(prefix).split("/")[0] for p in inside if "/" in p.removeprefix(prefix)}
        top = [_entry(path, file) for path, file in inside.items() if "/" not in path.removeprefix(prefix)]
        return 200, top + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]

    def paths_info(self, kind: str, repo: str, revision: str) -> tuple:
        _, files = self._files(self._repository(kind, repo), revision)
        text = self.body.decode()
        asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        return 200, [_entry(path, files[path]) for path in asked if path in files]

    def resolve(self, repo: str, revision: str, path: str, kinds: str | None) -> tuple:
        repository = self._repository(kinds[:-1] if kinds else "model", repo)
        commit, files = self._files(repository, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return 404, b"Entry not found", headers
        file = files[path]
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            return 302, b"", {**headers, "Location": f"{self.hub.cdn}/objects/{file.etag}?signature=secret"}
        return self._content(file.content, {**headers, "ETag": f'"{file.etag}"'})

    def download(self, oid: str) -> tuple:
        if "Authorization" in self.headers:
            raise Refused(400, "the storage must not see the token")
        return self._content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple:
        headers["Accept-Ranges"] = "bytes"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content, headers
        start, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if start > last:
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        return 206, content[start : last + 1], headers


def metadata_errors(data: dict[str, Any]) -> list[str]:
    """What the Hub finds wrong with the YAML block of a model card, in its words.

    The rules are those of hf.co/docs/hub/model-cards and of the Hub's answers, as far as a card of this package could
    break them; identifiers are a part of the Hub's lists.
    """
    texts = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
    wrong = [f'"{key}" must be a string' for key in texts if not isinstance(data.get(key, ""), str)]
    for key, allowed in IDENTIFIERS.items():
        if key in data and data[key] not in allowed:
            wrong.append(f'"{key}" must be one of [{", ".join(allowed)}]')
    for key in ("tags", "datasets", "metrics", "base_model"):
        values = data.get(key, [])
        values = [values] if key == "base_model" and isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            wrong.append(f'"{key}" must be an array of strings')
        elif key in ("datasets", "base_model"):
            wrong += [f'"{key}" with value "{name}" is not valid' for name in values if not ID.fullmatch(name)]
    if data.get("base_model_relation") and "base_model" not in data:
        wrong.append('"base_model_relation" needs "base_model"')
    for number, model in enumerate(data.get("model-index", [])):
        place = f"model-index[{number}]"
        if not isinstance(model.get("name"), str) or not model["name"]:
            wrong.append(f'"{place}.name" is not allowed to be empty')
        for index, result in enumerate(model.get("results", [])):
            wrong += _result_errors(result, f"{place}.results[{index}]")
    return wrong


def _result_errors(result: dict[str, Any], place: str) -> list[str]:
    """`metadata_errors` of an entry of the `model-index`."""
    required = {"task.type": str, "dataset.type": str, "dataset.name": str}
    wrong = []
    for path, kind in required.items():
        part, key = path.split(".")
        if not isinstance(result.get(part, {}).get(key), kind) or not result[part][key]:
            wrong.append(f'"{place}.{path}" is required')
    for number, metric in enumerate(result.get("metrics") or [{}]):
        if not isinstance(metric.get("type"), str) or metric.get("value") is None:
            wrong.append(f'"{place}.metrics[{number}]" needs "type" and "value"')
        elif isinstance(metric["value"], float) and not math.isfinite(metric["value"]):
            wrong.append(f'"{place}.metrics[{number}].value" must be a number')
    return wrong


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.etag}
    if file.large:
        entry["lfs"] = {"oid": file.etag, "size": len(file.content), "pointerSize": 134}
    return entry


_PAGE = rf"/(?:(?P<kinds>spaces|datasets)/)?{REPO}"
_ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{API}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"{API}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("GET", rf"{API}/refs", _Handler.refs),
    ("GET", rf"{API}(/revision/(?P<revision>.+))?", _Handler.info),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", "/verify", _Handler.lfs_verify),
    ("GET HEAD", rf"{_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET HEAD", "/objects/(?P<oid>[0-9a-f]{64})", _Handler.download),
]
