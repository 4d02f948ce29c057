"""A source is read from the Hub by its name: here from a local server that answers as the Hub's API does."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlparse

import pytest

from helpers import data_sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train_0001
    path: data/train_0001-*.parquet
  - split: train_0002
    path: data/train_0002-*.parquet
  - split: test
    path: data/test-*.parquet
---
"""


class Hub(BaseHTTPRequestHandler):
    """Serves `files`, path -> bytes, as one data set, whatever its name."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict] = {}

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, headers=(), send=True):
        self.send_response(status)
        for name, value in [("Content-Length", str(len(body))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def as_json(self, value):
        self.answer(200, json.dumps(value).encode(), [("Content-Type", "application/json")])

    def entry(self, name):
        return {"type": "file", "path": name, "oid": f"{len(name):040x}", "size": len(self.files[name])}

    def children(self, folder):
        inside = [name for name in self.files if Path(name).is_relative_to(folder)]
        folders = {
            str(parent) for name in inside for parent in Path(name).parents if str(parent.parent) == (folder or ".")
        }
        entries = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders - {"."})]
        return entries + [self.entry(name) for name in inside if str(Path(name).parent) == (folder or ".")]

    def do_HEAD(self):
        self.resolve(send=False)

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = re.findall(r"[\w./-]+\.\w+", unquote(asked))
        self.as_json([self.entry(name) for name in names if name in self.files])

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if not path.startswith("/api/"):
            self.resolve()
        elif "/tree/" in path:
            self.as_json(self.children(path.split(f"/tree/{COMMIT}")[-1].strip("/")))
        else:
            files = [{"rfilename": name} for name in self.files]
            self.as_json({"id": "maker/pairs", "sha": COMMIT, "siblings": files, "private": False, "tags": []})

    def resolve(self, send=True):
        name = unquote(urlparse(self.path).path).split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1]
        if name not in self.files:
            return self.answer(404, b"", [("X-Error-Code", "EntryNotFound")], send)
        data = self.files[name]
        headers = [("X-Repo-Commit", COMMIT), ("ETag", f'"{len(data)}"'), ("Accept-Ranges", "bytes")]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(200, data, headers, send)
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers.append(("Content-Range", f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"))
        return self.answer(206, data[first : last + 1], headers, send)


@pytest.fixture
def hub(tmp_path):
    """Address of a Hub with one data set: two splits of twelve pairs, and one that is none of them."""
    file, _ = data_sources.hpd(tmp_path)
    names = [f"data/{name}-00000-of-00001.parquet" for name in ("train_0001", "train_0002", "test")]
    Hub.files = {"README.md": CARD.encode(), **dict.fromkeys(names, file.read_bytes())}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_import(address, output, *options):
    """Import in a process of its own: the libraries read the address when they are imported."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(output.parent / "cache")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "unifiedreward_think.data", "import", "--output", str(output), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_splits_that_fit_are_read_by_the_name_of_the_data_set(hub, tmp_path):
    done = run_import(hub, tmp_path / "out", "--source", "hpd")
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert (counts["inputs"], counts["kept"], counts["broken"]) == (24, 24, {})
    assert counts["preferred first as found"] == {"hpd": 16}
    assert len(list((tmp_path / "out" / "media").rglob("*.png"))) == 24
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"][0]["revision"] == COMMIT


def test_a_split_that_is_not_there_is_an_error_that_names_the_data_set(hub, tmp_path):
    done = run_import(hub, tmp_path / "out", "--source", "open_image_preferences", "--input", "maker/pairs")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: maker/pairs: cannot be read from the Hub")


def test_a_hub_that_does_not_answer_is_an_error_with_the_mend(tmp_path):
    done = run_import("http://127.0.0.1:9", tmp_path / "out", "--source", "hpd")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("download it and name its files")
