"""Tests of downloading from the hub, against a server of our own on the loopback address.

The server behaves like the hub: small files come at once with the commit in a header, large ones are a redirect to a
second server (another port) whose answer says nothing about the file, and it can be told to misbehave: to break
connections, to ignore ranges, to send wrong bytes, to be busy.

Run:  python test/parity_hub.py
"""

import hashlib
import http.server
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote

from export_tools import Tally, export, make

import hub
from container import ExportError, WeightFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
t = Tally()


class Hub:
    """Two servers: the hub and its store of large files. .log holds (server, path, Range, Authorization)."""

    def __init__(self, folder):
        self.folder, self.log, self.broken, self.how = folder, [], {}, set()
        self.ports = []
        for name in ("hub", "store"):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler(name))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.ports.append(server.server_address[1])

    def handler(self, server):
        """The request handler of one of the two."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.log.append((server, unquote(self.path), self.headers.get("Range"),
                                  self.headers.get("Authorization")))
                outer.answer(server, self)
        return Handler

    def answer(self, server, h):
        """Sends an answer through a handler."""
        parts = unquote(h.path).split("/")          # /org/name/resolve/revision/file, or /store/file
        if server == "hub" and (parts[1:3] != ["org", "model"] or parts[4] not in ("main", "v1", COMMIT)):
            return h.send_error(404)
        if "private" in self.how and server == "hub" and h.headers.get("Authorization") != "Bearer secret":
            return h.send_error(401)
        if "busy" in self.how:
            self.how.discard("busy")
            return h.send_error(503)
        path = self.folder / parts[-1]
        if not path.is_file():
            return h.send_error(404)
        data = path.read_bytes()
        if server == "hub" and len(data) > 100000 and "plain" not in self.how:
            h.send_response(302)
            h.send_header("Location", f"http://127.0.0.1:{self.ports[1]}/store/{parts[-1]}")
            h.send_header("X-Linked-Size", str(len(data)))
            h.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            h.send_header("X-Repo-Commit", COMMIT)
            h.send_header("Content-Length", "0")
            return h.end_headers()
        if "wrong" in self.how and len(data) > 100000:
            data = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        start = int((h.headers.get("Range") or "bytes=0-")[6:-1])
        if "no ranges" in self.how:
            start = 0
        if start >= len(data) > 0:
            return h.send_error(416)
        h.send_response(206 if start else 200)
        if start:
            h.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        h.send_header("Content-Length", str(len(data) - start))
        if server == "hub" and "plain" not in self.how:
            h.send_header("X-Repo-Commit", COMMIT)
        h.end_headers()
        stop = self.broken.pop(path.name, None)
        h.wfile.write(data[start:stop])
        if stop is not None:
            h.close_connection = True
        return None


def fails(what, word, call):
    """call() raises an ExportError that holds a word."""
    try:
        call()
        t.expect(False, f"{what}: no error")
    except ExportError as e:
        t.expect(word in str(e), f"{what}: expected {word!r} in {str(e)!r}")


def fresh(tmp):
    """A new empty cache; everything downloaded into the last one is gone."""
    shutil.rmtree(tmp / "cache", ignore_errors=True)
    os.environ["BLIP2_CACHE"] = str(tmp / "cache")


def check_export(tmp, server, model):
    """The command line: the same file as from the folder."""
    fresh(tmp)
    done = export("org/model", tmp / "hub.b2c")
    local = export(model, tmp / "local.b2c")
    t.expect(done.returncode == local.returncode == 0, f"export from the hub: {done.stderr}")
    t.expect((tmp / "hub.b2c").read_bytes() == (tmp / "local.b2c").read_bytes(), "hub and folder give the same file")
    t.expect(not list((tmp / "cache").rglob("*.part")), "no .part is left")
    wanted = {p.name for p in model.iterdir()} - {"generation_config.json"}
    got = {p.name for p in (tmp / "cache").rglob("*") if p.is_file()}
    t.expect(got == wanted, f"files downloaded: {got ^ wanted}")
    paths = [p for s, p, _, _ in server.log if s == "hub"]
    t.expect(all(f"/{COMMIT}/" in p for p in paths[1:]), f"all but the first come from the commit: {paths}")
    n = len([1 for s, *_ in server.log if s == "store"])
    done = export("org/model@v1", tmp / "hub.b2c")
    t.expect(done.returncode == 0, f"with a revision: {done.stderr}")
    t.expect(len([1 for s, *_ in server.log if s == "store"]) == n, "what is there is not downloaded again")
    done = export("org/none", tmp / "none.b2c")
    t.expect(done.returncode == 1 and "no such model" in done.stderr, f"unknown model: {done.stderr}")
    t.expect(not (tmp / "none.b2c").exists(), "unknown model leaves no file")
    done = export("org/model@nope", tmp / "none.b2c")
    t.expect(done.returncode == 1 and "revision" in done.stderr, f"unknown revision: {done.stderr}")


def check_resume(tmp, server, weights):
    """Broken connections and kept beginnings."""
    big = sorted(weights, key=lambda p: -p.stat().st_size)[0]
    for what, how in (("redirect", set()), ("plain", {"plain"})):
        fresh(tmp)
        server.how, server.log = set(how), []
        server.broken = {big.name: 70000, "config.json": 10}
        folder = hub.download("org/model", quiet=True)
        t.expect((folder / big.name).read_bytes() == big.read_bytes(), f"{what}: resumed within a call")
        ranges = [r for _, p, r, _ in server.log if p.endswith(big.name) and r]
        t.expect(ranges and set(ranges) == {"bytes=70000-"}, f"{what}: continued at {ranges}")
    server.how = {"no ranges"}
    fresh(tmp)
    server.broken = {big.name: 70000}
    folder = hub.download("org/model", quiet=True)
    t.expect((folder / big.name).read_bytes() == big.read_bytes(), "a server without ranges: from the start")
    server.how = set()
    for what, start in (("right", big.read_bytes()[:1234]), ("wrong", b"x" * 1234), ("whole", big.read_bytes()),
                        ("too long", big.read_bytes() + b"x")):
        (folder / big.name).unlink()
        (folder / (big.name + ".part")).write_bytes(start)
        hub.download("org/model", quiet=True)
        t.expect((folder / big.name).read_bytes() == big.read_bytes(), f"a {what} beginning from an earlier call")
    server.how = {"busy"}
    (folder / big.name).unlink()
    hub.download("org/model", quiet=True)
    t.expect((folder / big.name).read_bytes() == big.read_bytes(), "a server that is busy once")


def check_bad(tmp, server, model):
    """Wrong content, missing files, hostile names."""
    fresh(tmp)
    server.how = {"wrong"}
    fails("wrong bytes", "sha256", lambda: hub.download("org/model", quiet=True))
    t.expect(not list((tmp / "cache").rglob("*.safetensors")), "wrong bytes are not kept")
    server.how = set()
    index = model / "model.safetensors.index.json"
    text = index.read_text()
    first = sorted(model.glob("model-*"))[0].name
    for bad, word in (("../../evil", "not a file of this folder"), ("gone.safetensors", "not on the hub")):
        fresh(tmp)
        index.write_text(text.replace(first, bad))
        fails(f"a shard called {bad}", word, lambda: hub.download("org/model", quiet=True))
    index.unlink()
    fresh(tmp)
    fails("no weights", "no model.safetensors", lambda: hub.download("org/model", quiet=True))
    index.write_text(text)
    for name in ("", "a", "a/b/c", "../a", "a/..", "a/b@", "a/b@../c", "https://a/b", "a b/c"):
        fails(f"id {name!r}", "not a hub id", lambda: hub.parse_id(name))
    t.expect(hub.parse_id("Salesforce/blip2-opt-2.7b@refs/pr/7") == ("Salesforce/blip2-opt-2.7b", "refs/pr/7"), "id")


def check_token(tmp, server):
    """HF_TOKEN goes to the hub and to nobody else."""
    fresh(tmp)
    server.how = {"private"}
    fails("no token", "HF_TOKEN", lambda: hub.download("org/model", quiet=True))
    os.environ["HF_TOKEN"] = "secret"
    server.log = []
    hub.download("org/model", quiet=True)
    t.expect(all(a == "Bearer secret" for s, _, _, a in server.log if s == "hub"), "token to the hub")
    store = [a for s, _, _, a in server.log if s == "store"]
    t.expect(store and set(store) == {None}, f"token to the store of files: {store}")
    del os.environ["HF_TOKEN"]


def main():
    """Runs all; the exit status says whether all passed."""
    hub.PAUSE = 0.0
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        model = make(tmp / "model", "tiny_opt", "--shard-mb", "3")
        server = Hub(model)
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.ports[0]}/"
        check_export(tmp, server, model)
        t.expect(WeightFile(tmp / "hub.b2c").config["type"] == "opt", "the file can be read")
        check_resume(tmp, server, list(model.glob("model-*")))
        check_bad(tmp, server, model)
        check_token(tmp, server)
        os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
        fresh(tmp)
        fails("nobody there", "hint", lambda: hub.download("org/model", quiet=True))
    return t.finish()


if __name__ == "__main__":
    sys.exit(main())
