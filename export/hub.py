"""Downloads the files of a model from the Hugging Face hub that an export needs.

In order: the id, one request, one file (resumed, checked, renamed), the choice of files, download.

Only the plain file addresses are used, ENDPOINT/org/name/resolve/REVISION/FILE, so any mirror that serves them will
do. Environment: HF_ENDPOINT, HF_TOKEN, BLIP2_CACHE (where files are kept, ~/.cache/blip2c by default). A broken
download goes on where it stopped, within a call and across calls. What arrives is checked against the size and, where
the hub says it, the sha256.
"""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from container import ExportError, progress_line
from source import WEIGHTS, shards

ENDPOINT = "https://huggingface.co"
TIMEOUT, ATTEMPTS, BLOCK = 30, 5, 1 << 20       # seconds of silence, tries without progress, bytes
PAUSE = 1.0                                     # seconds, times 2, 4, 8, ... between tries
OPTIONAL = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
            "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model")


class Missing(ExportError):
    """The hub has no such file."""


def parse_id(text):
    """org/name[@revision] -> (org/name, revision). Raises ExportError."""
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?", text, re.ASCII)
    if not match or ".." in text:
        raise ExportError(f"{text}: no such folder, and not a hub id such as Salesforce/blip2-opt-2.7b")
    return match.group(1), match.group(2) or "main"


# ---------------------------------------------------------------------------------------------------------------------
# Requests


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to request(), which sends the token to the hub alone and keeps each hop's headers."""

    def redirect_request(self, *_):
        """None: a redirect is raised as an HTTPError."""
        return None


OPENER = urllib.request.build_opener(NoRedirect)


def endpoint():
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def request(url, start):
    """GET from byte start on. Returns (response, headers), the headers of all hops together: for a large file the hub
    redirects to another server, and only the redirect says its size, hash and commit. Raises as urllib does."""
    headers, token = {}, os.environ.get("HF_TOKEN")
    for _ in range(10):
        get = urllib.request.Request(url, headers={"User-Agent": "blip2c-export", "Accept-Encoding": "identity"})
        if start:
            get.add_header("Range", f"bytes={start}-")
        if token and urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(endpoint())[:2]:
            get.add_header("Authorization", f"Bearer {token}")
        try:
            response = OPENER.open(get, timeout=TIMEOUT)
        except urllib.error.HTTPError as e:
            if e.code not in (301, 302, 303, 307, 308) or not e.headers.get("Location"):
                raise
            headers = {**{k.lower(): v for k, v in e.headers.items() if k.lower().startswith("x-")}, **headers}
            to = urllib.parse.urljoin(url, e.headers["Location"])
            if not to.startswith("https://" if url.startswith("https://") else ("http://", "https://")):
                raise ExportError(f"{url}: redirected to {to[:80]}, which is not safe") from None
            url = to
            continue
        return response, {**{k.lower(): v for k, v in response.headers.items()}, **headers}
    raise ExportError(f"{url}: too many redirects")


def whole_size(response, headers):
    """Bytes of the whole file, or None when the server does not say."""
    told = headers.get("x-linked-size")
    if told is None and response.status == 206:
        told = headers.get("content-range", "").rpartition("/")[2]
    elif told is None:
        told = headers.get("content-length")
    return int(told) if told is not None and told.isdigit() else None


# ---------------------------------------------------------------------------------------------------------------------
# One file


def receive(response, part, start, total, name, quiet):
    """Appends the body to the file part. Returns its size; a connection that breaks is no error here."""
    state, size = {}, start
    with open(part, "r+b" if part.exists() else "w+b") as f:
        f.truncate(start)
        f.seek(start)
        while total is None or size < total:
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as e:
                print(f"{name}: the connection broke at {size} bytes ({e})", file=sys.stderr)
                if total is None:
                    return -1          # nothing tells whether it was complete
                break
            if not block:
                break
            f.write(block)
            size += len(block)
            if not quiet and total and total > 10 << 20:
                progress_line(name, size, total, state)
    return size


def refuse(e, url):
    """The error for an answer that another try would not change, or None."""
    if e.code == 404:
        return Missing(f"{url}: no such model, revision or file")
    if e.code in (401, 403):
        return ExportError(f"{url}: access denied ({e.code}); no such model, or a private or gated one: set HF_TOKEN")
    return None if e.code in (408, 416, 429) or e.code >= 500 else ExportError(f"{url}: the server says {e.code}")


def wrong_hash(part, headers):
    """Whether the file has another sha256 than the hub says (it does for large files, as x-linked-etag)."""
    told = headers.get("x-linked-etag", "").strip('"').lower()
    if not re.fullmatch(r"[0-9a-f]{64}", told):
        return False
    with open(part, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() != told


def fetch(url, target, trusted, quiet):
    """Downloads one file to target, through target.part. trusted: target is right if it is there. Returns the headers.
    Raises ExportError; Missing when the hub has no such file."""
    if target.exists() and trusted:
        return {}
    part, tries = target.with_name(target.name + ".part"), 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            response, headers = request(url, start)
        except urllib.error.HTTPError as e:
            if error := refuse(e, url):
                raise error from None
            if e.code == 416:             # what is there is already as long as the file, or longer
                part.unlink(missing_ok=True)
            response, problem = None, f"the server says {e.code}"
        except (OSError, http.client.HTTPException) as e:
            response, problem = None, getattr(e, "reason", None) or e
        if response:
            with response:
                total = whole_size(response, headers)
                if target.exists() and target.stat().st_size == total:
                    return headers
                start = start if response.status == 206 else 0
                size = receive(response, part, start, total, target.name, quiet)
            if total in (None, size) and size >= 0:
                if not wrong_hash(part, headers):
                    os.replace(part, target)
                    return headers
                part.unlink()
                problem = "the content does not have the sha256 that the hub gives"
            else:
                problem = f"{size} of {total} bytes came"
                tries = 0 if size > start else tries     # it moves on, however slowly
        tries += 1
        if tries >= ATTEMPTS:
            raise ExportError(f"{url}: {problem}; hint: what arrived is kept, run the same command again")
        time.sleep(min(2 ** tries, 30) * PAUSE)


# ---------------------------------------------------------------------------------------------------------------------
# A model


def download(model, quiet=False):
    """Brings the files of a hub id that an export needs onto this machine. Returns their folder (Path). Raises
    ExportError, OSError."""
    name, revision = parse_id(model)
    home = Path(os.environ.get("BLIP2_CACHE") or Path.home() / ".cache" / "blip2c")
    base = home / name.replace("/", "--")
    base.mkdir(parents=True, exist_ok=True)

    def address(file):
        return f"{endpoint()}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/{file}"

    # config.json comes first: with it the hub tells which commit the revision is, and all else is taken from that one
    first = base / f"config.{os.getpid()}.json"
    try:
        commit = fetch(address("config.json"), first, False, quiet).get("x-repo-commit", "")
        pinned = re.fullmatch(r"[0-9a-f]{7,64}", commit) is not None
        folder = base / (commit if pinned else revision.replace("/", "--"))
        folder.mkdir(exist_ok=True)
        os.replace(first, folder / "config.json")
    finally:
        first.unlink(missing_ok=True)
    revision = commit if pinned else revision
    if not quiet:
        print(f"{name}, revision {revision}: downloading to {folder}", file=sys.stderr)

    def have(file):
        try:
            fetch(address(file), folder / file, pinned, quiet)
        except Missing:
            return False
        return True

    for file in OPTIONAL:
        have(file)
    for index, single, _ in WEIGHTS:
        if have(index):
            files = shards(folder / index)[0]
            absent = [f for f in files if not have(f)]
            if absent:
                raise ExportError(f"{name}: {absent[0]}, which {index} names, is not on the hub")
            return folder
        if have(single):
            return folder
    raise ExportError(f"{name}: the hub has no model.safetensors and no pytorch_model.bin for it")
