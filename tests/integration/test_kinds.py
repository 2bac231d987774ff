"""Text that becomes bytes, bytes that become text, and files, through a real server and from the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import Server, serving, xformd
from support.session_client import Session

pytestmark = pytest.mark.slow

PLUGIN = """
import os
from pathlib import Path
import xformd

@xformd.transform(accepts="text/markdown", produces="application/pdf", examples=[("# a", b"%PDF # a")])
def to_pdf(poem: str) -> bytes:
    return b"%PDF " + poem.encode()

@xformd.transform(accepts="application/pdf", examples=[(b"%PDF a", "poem.pdf: %PDF a in []")])
def from_pdf(poem: Path) -> str:
    others = sorted(each.name for each in Path.cwd().iterdir() if each != poem)
    return f"{poem.name}: {poem.read_text()} in {others}"

@xformd.transform(accepts="image/*", produces="image/png")
def draw(poem: bytes) -> Path:
    Path("picture.png").write_bytes(b"\\x89PNG" + poem)
    return Path("picture.png")

@xformd.transform(produces="image/png")
def steals(poem: str) -> Path:
    return Path("/etc/passwd")

@xformd.hookimpl
def xformd_transforms():
    return [to_pdf, from_pdf, draw, steals]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "kinds.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--plugins=none", "--plugins-dir", str(folder), "--workers", "1", *HTTP) as running:
        yield running


def test_the_type_of_a_result_is_what_its_transform_produces(server: Server) -> None:
    with exchange(server) as http:
        made = http.ask(request("/transform/to-pdf", b"# Owl"))
        assert (made.status, made.headers["content-type"], made.body) == (200, "application/pdf", b"%PDF # Owl")
        back = http.ask(request("/transform/from-pdf", made.body))
        assert back.headers["content-type"] == "text/plain; charset=utf-8"
        assert back.body == b"poem.pdf: %PDF # Owl in []"
        drawn = http.ask(request("/transform/draw", b"\xff"))
        assert (drawn.headers["content-type"], drawn.body) == ("image/png", b"\x89PNG\xff")


def test_a_pipeline_goes_from_kind_to_kind_and_is_refused_where_the_types_do_not_fit(server: Server) -> None:
    with exchange(server) as http, Session(server) as session:
        assert http.ask(request("/transform/upper+to-pdf+from-pdf", b"owl")).body == b"poem.pdf: %PDF OWL in []"
        for spec, says in (
            ("draw+upper", "draw+upper: draw produces image/png, and upper accepts text/plain"),
            ("draw+from-pdf", "draw+from-pdf: draw produces image/png, and from-pdf accepts application/pdf"),
        ):
            refused = http.ask(request(f"/transform/{spec}", b"owl"))
            assert (refused.status, says in refused.body.decode()) == (400, True)
            answer = session.ask(spec, b"owl")
            assert (answer.code, answer.poem.decode()) == ("bad-request", says)


def test_a_file_that_is_not_the_jobs_own_never_leaves(server: Server) -> None:
    with Session(server) as session:
        answer = session.ask("steals", b"")
        assert (answer.code, answer.poem.decode()) == (
            "transform-failed",
            "steals returned a file outside of its job's folder",
        )


def test_output_dir_names_files_by_what_they_hold(server: Server, folder: Path, tmp_path: Path) -> None:
    for name in ("page.md", "note.txt", "poem"):
        (tmp_path / name).write_text("owl")
    files = [str(tmp_path / name) for name in ("page.md", "note.txt", "poem")]
    out = tmp_path / "out"
    where = ("--server", server.address)
    assert xformd("send", "to-pdf", *where, "--output-dir", str(out), *files).returncode == 0
    assert xformd("send", "upper", *where, "--output-dir", str(out), *files).returncode == 0
    run = ("--plugins=none", "--plugins-dir", str(folder))
    assert xformd("run", *run, "to-pdf+draw", "--output-dir", str(out), files[0]).returncode == 64
    assert sorted(path.name for path in out.iterdir()) == [
        "note.pdf",
        "note.txt",
        "page.md",
        "page.pdf",
        "poem",
        "poem.pdf",
    ]
    assert (
        xformd("run", *run, "from-pdf", "--output-dir", str(tmp_path / "texts"), str(out / "page.pdf")).returncode == 0
    )
    assert (tmp_path / "texts" / "page.txt").read_text() == "poem.pdf: %PDF owl in []"


def test_two_results_with_one_name_are_refused(server: Server, tmp_path: Path) -> None:
    for name in ("page.md", "page.txt"):
        (tmp_path / name).write_text("owl")
    files = [str(tmp_path / name) for name in ("page.md", "page.txt")]
    where = ("--server", server.address)
    done = xformd("send", "to-pdf", *where, "--output-dir", str(tmp_path / "out"), *files)
    assert done.returncode == 78
    assert b"would both become" in done.stderr


def test_check_compares_each_part_of_an_example_by_its_kind(folder: Path) -> None:
    done = xformd("check", "--plugins=none", "--plugins-dir", str(folder), "kinds.py")
    assert sorted(done.stdout.decode().splitlines()) == [
        "ok      draw: no examples",
        "ok      from-pdf: 1 example",
        "ok      steals: no examples",
        "ok      to-pdf: 1 example",
    ]
