"""The verb `download` against a stub of the Hub on loopback; no network is used."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mouselift_jax.__main__ import main

COMMIT = "0" * 39 + "1"
FILES = {
    "gslrm/ckpt_0000000000021125.pt": bytes(range(256)) * 4000,
    "mvdiffusion/pipeckpts/model_index.json": b"{}",
    "mvdiffusion/pipeckpts/unet/config.json": b'{"a": 1}',
    "mvdiffusion/pipeckpts/unet/diffusion_pytorch_model.safetensors": b"x" * 5000,
    "assets/teaser.mp4": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    """The few calls that `snapshot_download` makes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.calls.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if path.startswith("/api/models/wlyu/OpenFaceLift/tree"):
            tree = [
                {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                for k, v in FILES.items()
            ]
            return self.answer(json.dumps(tree).encode())
        if path.startswith("/api/models/wlyu/OpenFaceLift"):
            siblings = [{"rfilename": k, "size": len(v)} for k, v in FILES.items()]
            info = {
                "id": "wlyu/OpenFaceLift",
                "modelId": "wlyu/OpenFaceLift",
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self.answer(json.dumps(info).encode())
        found = re.fullmatch(r"/wlyu/OpenFaceLift/resolve/[^/]+/(.*)", path)
        if found and found[1] in FILES:
            return self.answer(FILES[found[1]], file=True)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    do_HEAD = do_GET

    def answer(self, body, file=False):
        start = 0
        if file and self.headers.get("Range"):
            start = int(self.headers["Range"].split("=")[1].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if file:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut if file and not start else None
        self.wfile.write(body[start:][:cut])
        if cut and len(body) > cut:
            self.close_connection = True

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.cut = [], None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shows_size_and_licence_then_fetches_what_is_wanted(hub, tmp_path, capsys):
    server, endpoint = hub
    args = ["download", "facelift", "--endpoint", endpoint]
    assert main([*args, "--list"]) == 0
    out = capsys.readouterr().out
    assert "Adobe Research License" in out and "1.0 MB  gslrm/ckpt_0000000000021125.pt" in out
    assert not any("/resolve/" in path and kind == "GET" for kind, path, _ in server.calls)
    assert main(args) == 2  # pytest has no terminal: nobody agreed
    assert "--yes" in capsys.readouterr().err
    assert main([*args, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "tools/convert_torch_ckpt.py gslrm data/downloads/facelift/gslrm" in out
    place = tmp_path / "data/downloads/facelift"
    for name, content in FILES.items():
        if name.startswith("assets"):
            assert not (place / name).exists()
        else:
            assert (place / name).read_bytes() == content
    server.calls.clear()
    assert main([*args, "--yes"]) == 0  # all there: nothing is fetched again
    assert not any(kind == "GET" and "/resolve/" in path for kind, path, _ in server.calls)


def test_an_interrupted_download_resumes(hub, tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server, endpoint = hub
    name = "gslrm/ckpt_0000000000021125.pt"
    args = ["download", "facelift", "--endpoint", endpoint, "--yes", "--to", str(tmp_path / "d")]

    def stopped(url, file, **options):  # the process ends after 700,000 bytes
        file.write(FILES[name][:700_000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", stopped)
        assert main(args) == 130
    assert not (tmp_path / "d" / name).exists()
    assert main(args) == 0
    ranges = [r for kind, path, r in server.calls if kind == "GET" and name in path]
    assert ranges == ["bytes=700000-"]
    assert (tmp_path / "d" / name).read_bytes() == FILES[name]
    assert not list((tmp_path / "d").rglob("*.part"))


def test_a_connection_that_breaks_is_taken_up_again(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server, endpoint = hub
    server.cut = 700_000
    place = tmp_path / "d"
    args = ["download", "facelift", "--endpoint", endpoint, "--yes", "--to", str(place)]
    assert main(args) == 0
    name = "gslrm/ckpt_0000000000021125.pt"
    assert (place / name).read_bytes() == FILES[name]


def test_offline_says_what_to_copy_where(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["download", "base", "--endpoint", "http://127.0.0.1:1"]
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert "cannot be reached" in err and "hf download sd2-community" in err
    assert f"copy that folder to {tmp_path}/data/downloads/base" in err
    assert not (tmp_path / "data").exists() or not any((tmp_path / "data").rglob("*.safetensors"))


def test_a_repository_that_is_gone_and_a_wrong_name(hub, capsys):
    assert main(["download", "base", "--endpoint", hub[1]]) == 2
    assert "hf download sd2-community" in capsys.readouterr().err
    assert main(["download", "faclift"]) == 2
    assert "'facelift'" in capsys.readouterr().err
