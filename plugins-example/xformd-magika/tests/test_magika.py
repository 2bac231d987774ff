"""The network recognises what it is for, a batch is as good as one at a time, and loading it leaves no thread."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from xformd_magika import BATCH, content_type

from xformd.kit.pytest_plugin import XformdServer


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("owl.txt", "went to sea " * 99)
    return file.getvalue()


POEMS = {
    "python": b"import sys\n\n\ndef owl(sea: str) -> None:\n    print(sea, file=sys.stderr)\n\n\nowl('pea-green')\n",
    "html": b"<!DOCTYPE html>\n<html><head><title>Owl</title></head><body><p>went to sea</p></body></html>\n",
    "json": json.dumps({"owl": {"sea": [1, 2, 3], "boat": "pea-green"}, "cat": None}, indent=2).encode(),
    "shell": b'#!/bin/sh\nset -e\nfor boat in *.boat; do\n    echo "$boat" >&2\ndone\n',
    "zip": archive(),
    "gzip": gzip.compress(b"The Owl and the Pussy-cat went to sea" * 99, mtime=0),
    "pdf": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n",
    "empty": b"",
    "txt": b"owl",
    "unknown": b"\xff\xfe\xfd",
}


def labels(results: list[str]) -> list[str]:
    return [json.loads(result)["label"] for result in results]


def test_content_is_recognised() -> None:
    assert labels(content_type([*POEMS.values()])) == [*POEMS]


def test_a_result_says_what_a_program_needs() -> None:
    (result,) = content_type([POEMS["html"]])
    told = json.loads(result)
    assert (told["mime_type"], told["is_text"], told["group"]) == ("text/html", True, "code")
    assert "html" in told["extensions"]
    assert 0.5 < told["score"] <= 1


def test_a_batch_gives_what_each_alone_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    poems = [*POEMS.values(), POEMS["python"]]
    assert content_type(poems) == [result for poem in poems for result in content_type([poem])]
    assert content_type([]) == []
    assert not list(tmp_path.iterdir())


def test_loading_leaves_no_thread() -> None:
    """A process with threads cannot be forked: each worker would have to load the model itself."""
    code = "import os, xformd_magika; xformd_magika.load(); print(len(os.listdir('/proc/self/task')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "1\n"


def test_a_server_puts_requests_together(xformd_server: XformdServer) -> None:
    url = f"{xformd_server.http}/transform/content-type"

    def ask(poem: bytes) -> bytes:
        request = Request(url, poem, {"Content-Type": "application/octet-stream"})
        with urlopen(request, timeout=60) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return answer.read()

    poems = [*POEMS.values()] * 3
    with ThreadPoolExecutor(2 * BATCH) as pool:
        assert labels(list(pool.map(ask, poems))) == [*POEMS] * 3
