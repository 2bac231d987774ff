"""What a step takes and gives: kinds, files in the job's folder, and steps that can follow each other."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.registries import registry_of
from xformd import Transform, transform
from xformd.errors import BadRequest, TooLarge, TransformFailed
from xformd.runners.calls import Call, argument, check_types, content, prepare
from xformd.spec import Step


@transform(accepts="application/pdf", produces="text/plain")
def read_pages(poem: Path) -> str:
    return poem.name


@transform(produces="image/png")
def draw(poem: str) -> Path:
    return Path(poem)


@transform(produces="text/html")
def markup(poem: str) -> str:
    return poem


@transform(accepts=("text/html", "image/*"))
def show(poem: bytes) -> bytes:
    return poem


@transform(accepts="application/json")
def parse(poem: str) -> str:
    return poem


@transform
def plain(poem: str) -> str:
    return poem


@transform
def pack(poem: bytes) -> bytes:
    return poem


REGISTRY = registry_of(read_pages, draw, markup, show, parse, plain, pack)


def call_of(made: Transform) -> Call:
    return prepare(Step(made.name), REGISTRY)


@pytest.mark.parametrize(
    ("first", "second", "accepted"),
    [
        (draw, plain, "text/plain"),
        (draw, parse, "application/json"),
        (markup, parse, "application/json"),
        (draw, read_pages, "application/pdf"),
    ],
)
def test_steps_that_cannot_follow_each_other_are_refused_by_name_and_type(
    first: Transform, second: Transform, accepted: str
) -> None:
    says = f"{first.name}+{second.name}: {first.name} produces {first.produces}, and {second.name} accepts {accepted}"
    with pytest.raises(BadRequest) as caught:
        check_types([call_of(plain), call_of(first), call_of(second)])
    assert caught.value.message == says


@pytest.mark.parametrize(
    "steps",
    [
        [draw, show],  # a range
        [markup, show],
        [markup, plain, parse],  # any text is plain text, and plain text may be any
        [plain, pack, plain, pack, draw],  # of plain bytes nothing is known
        [draw, pack, read_pages],
    ],
)
def test_steps_that_may_fit_follow_each_other(steps: list[Transform]) -> None:
    check_types([call_of(each) for each in steps])


def test_a_file_has_the_suffix_of_what_its_transform_accepts_and_a_name_of_its_own(tmp_path: Path) -> None:
    first, second = (argument(call_of(read_pages), content, str(tmp_path)) for content in (b"one", b"two"))
    assert [first, second] == [tmp_path / "poem.pdf", tmp_path / "poem2.pdf"]
    assert [(tmp_path / name).read_bytes() for name in ("poem.pdf", "poem2.pdf")] == [b"one", b"two"]


def test_a_file_of_the_jobs_folder_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "one.png").write_bytes(b"\x89PNG")
    for path in (Path("pages/one.png"), tmp_path / "pages" / "one.png", Path("pages/../pages/one.png")):
        assert content(call_of(draw), path, str(tmp_path), 4) == b"\x89PNG"
    with pytest.raises(TooLarge, match="the result of draw has 4 bytes; the limit is 3 bytes"):
        content(call_of(draw), Path("pages/one.png"), str(tmp_path), 3)


def make_link(folder: Path) -> Path:
    (folder / "link.png").symlink_to("/etc/passwd")
    return folder / "link.png"


def make_linked_folder(folder: Path) -> Path:
    (folder / "etc").symlink_to("/etc")
    return Path("etc/passwd")


def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return Path("pipe.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: Path("/etc/passwd"), "draw returned a file outside of its job's folder"),
        (lambda _: Path("../secret"), "draw returned a file outside of its job's folder"),
        (make_linked_folder, "draw returned a file outside of its job's folder"),
        (make_link, "draw returned a file that is a link"),
        (make_pipe, "draw returned something that is not a regular file"),
        (lambda folder: folder, "draw returned"),
        (lambda _: Path(), "draw returned"),
        (lambda _: Path("no.png"), "draw returned a file that cannot be read: No such file or directory"),
        (lambda _: Path("a" * 5000), "draw returned a file that cannot be read: File name too long"),
        (lambda _: Path("nul\0.png"), "draw returned a file that cannot be read"),
        (lambda _: Path("/dev/null"), "draw returned a file outside of its job's folder"),
        (lambda _: "/etc/passwd", "draw returned str where it must return the Path of a file"),
        (lambda _: None, "draw returned NoneType where it must return the Path of a file"),
    ],
)
def test_anything_but_a_regular_file_in_the_jobs_folder_is_a_failure(
    make: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "secret").write_text("of another job")
    with pytest.raises(TransformFailed, match=says):
        content(call_of(draw), make(folder), str(folder), 1_000_000)
