"""A stand-in for the Hugging Face hub on loopback: what `create_repo` and `upload_folder` ask of it, and its moods."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_stand_in"


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent. `fails` maps a part of a path to the status that it answers; 0 is silence."""

    daemon_threads = True

    def __init__(self, fails: dict[str, int], public: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails = fails
        self.public = public
        """Whether the repository was there before, and everybody could see it"""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.created: dict = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        """What the commit holds, by path"""
        self.revision: str | None = None
        self.over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, verb: str) -> None:
        hub, path, body = self.server, self.path.partition("?")[0], self._body()
        hub.asked.append(f"{verb} {path}")
        status = next((code for part, code in hub.fails.items() if part in path), 200)
        if status == 0:
            hub.over.wait(60)
        elif status != 200:
            self._answer(status, {"error": "the stand-in was told to"})
        elif path.startswith("/api/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._answer(*self._reply(verb, path, body))

    def _reply(self, verb: str, path: str, body: bytes) -> tuple[int, object]:
        hub = self.server
        if path == "/api/repos/create":
            hub.created = json.loads(body)
            where = {"url": f"{hub.url}/{hub.created['organization']}/{hub.created['name']}"}
            return (409 if hub.public else 200), where
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/objects/batch"):
            return 200, {"objects": [self._where(each) for each in json.loads(body)["objects"]]}
        if path.startswith("/lfs/"):
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if "/preupload/" in path:
            return 200, {"files": [_mode(each) for each in json.loads(body)["files"]]}
        if "/branch/" in path:
            return 200, {}
        if "/commit/" in path:
            hub.revision = path.rpartition("/")[2]
            hub.files |= dict(filter(None, (self._kept(json.loads(line)) for line in body.splitlines())))
            where = f"{hub.url}/{path.split('/')[3]}/{path.split('/')[4]}/commit/{'0' * 40}"
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": where}
        if verb == "GET" and path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/")
            return 200, {"id": name, "modelId": name, "private": not hub.public, "tags": [], "siblings": []}
        return 404, {"error": f"the stand-in does not know {verb} {path}"}

    def _where(self, held: dict) -> dict:
        return {**held, "actions": {"upload": {"href": f"{self.server.url}/lfs/{held['oid']}", "header": {}}}}

    def _kept(self, line: dict) -> tuple[str, bytes] | None:
        value = line["value"]
        if line["key"] == "file":
            return value["path"], base64.b64decode(value["content"])
        return (value["path"], self.server.objects[value["oid"]]) if line["key"] == "lfsFile" else None


def _mode(file: dict) -> dict:
    large = file["path"].endswith(".safetensors")
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@contextlib.contextmanager
def hub(fails: dict[str, int] | None = None, *, public: bool = False) -> Iterator[Hub]:
    """The stand-in, at work until the block ends."""
    server = Hub(fails or {}, public)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def settings(server: Hub, token: str = TOKEN) -> dict[str, str]:
    """The environment of a process for which the stand-in is the hub."""
    named = {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return {**named, "HF_HUB_DISABLE_TELEMETRY": "1"}
