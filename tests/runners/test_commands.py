"""Commands in a worker: they are held to its limits, and leave nothing behind."""

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.live import LiveForkServer, LiveWorker, is_running, live
from support.processes import wait_until
from xformd import BadOptions, TooLarge, TransformFailed
from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table
from xformd.runners import messages

MEMORY_BYTES = 200_000_000


def sh(script: str, *arguments: str, **values: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script.replace("{", "{{").replace("}", "}}"), "sh", *arguments], **values}


COMMANDS: Mapping[str, dict[str, Any]] = {
    "where": sh('pwd; ls; touch litter; echo "$1"', "{poem}", accepts="text/markdown"),
    "copy": {"command": ["cp", "{poem}", "{result}"]},
    "endless": {"command": ["yes"]},
    "hangs": sh("echo $$ >&2; sleep 1000 & sleep 1000"),
    "leaves": sh("setsid sleep 1000 & sleep 1000 >/dev/null 2>&1 & echo done"),
    "whispers": sh("echo my-password >&2; exit 7"),
    "fills": sh("head -c 300000000 /dev/zero >big"),
    "limits": {"command": ["cat", "/proc/self/limits"]},
    "greedy": {"command": [sys.executable, "-I", "-S", "-c", "print(len(bytes(300_000_000)))"]},
    "outside": sh('ln -s "$(dirname "$1")/.." "$(dirname "$1")/up"; rm -f "$1"; ln -s /etc/passwd "$1"', "{result}"),
    "echo": {"command": ["echo", "{word}"], "options": {"word": ""}},
}


@pytest.fixture(scope="module")
def forking() -> Iterator[LiveForkServer]:
    """A fork server that has loaded the commands."""
    tables = {name: Table(values, {"": "x.toml, line 1"}, "/") for name, values in COMMANDS.items()}
    with live() as server:
        server.begin(selection=Selection(distributions=frozenset(), commands=tables), memory_bytes=MEMORY_BYTES)
        yield server


@pytest.fixture(scope="module")
def worker(forking: LiveForkServer) -> LiveWorker:
    """A worker for tests that leave it alive."""
    return forking.worker()


@pytest.fixture
def own(forking: LiveForkServer) -> LiveWorker:
    """A worker for a test that ends it."""
    return forking.worker()


def failure(worker: LiveWorker, spec: str, kind: type, poem: bytes = b"") -> str:
    error = worker.xform(spec, poem)
    assert isinstance(error, kind), error
    return str(error)


def test_a_command_runs_in_the_job_s_own_folder(worker: LiveWorker) -> None:
    for _ in range(2):
        folder, *found, poem = worker.text("where", b"poem").splitlines()
        assert found == ["poem.md"]
        assert poem == f"{folder}/poem.md"
        assert not Path(folder, "litter").exists()


def test_each_step_of_a_request_has_files_of_its_own(worker: LiveWorker) -> None:
    request = worker.ask("copy+copy+copy", b"\xff")
    steps = [messages.decode_note(worker.receive()) for _ in range(2)]
    assert steps == [("step", request, 1), ("step", request, 2)]
    assert worker.answer() == b"\xff"


def test_it_is_listed_like_every_transform(worker: LiveWorker) -> None:
    (found,) = [each for each in worker.hello.listing["transforms"] if each["name"] == "where"]
    assert (found["plugin"], found["distribution"]) == ("transform.where", "transform.where")
    assert (found["kind"], found["accepts"], found["state"]) == ("text", ["text/markdown"], "active")


def test_its_output_is_held_to_the_limit(worker: LiveWorker) -> None:
    says = failure(worker, "endless", TooLarge)
    assert says == "the result of endless has more than 1000000 bytes; the limit is 1000000 bytes"


def test_it_cannot_fill_the_disk_with_one_file(worker: LiveWorker) -> None:
    assert failure(worker, "fills", TransformFailed).endswith(("exit status 153", "killed by SIGXFSZ"))
    assert f"{MEMORY_BYTES}" in next(
        line for line in worker.text("limits").splitlines() if line.startswith("Max file size")
    )
    assert worker.text("upper", b"a") == "A"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != MEMORY_BYTES


def test_it_is_held_to_the_memory_of_a_job(worker: LiveWorker) -> None:
    assert failure(worker, "greedy", TransformFailed) == "the command of greedy ended with exit status 1"


def test_what_it_leaves_behind_ends_before_the_answer(worker: LiveWorker) -> None:
    before = children_of(worker)
    assert worker.text("leaves") == "done\n"
    assert children_of(worker) == before


def children_of(worker: LiveWorker) -> str:
    return Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()


def test_a_result_is_never_what_a_link_leads_to(worker: LiveWorker) -> None:
    assert failure(worker, "outside", TransformFailed) == "outside returned a file that is a link"


def test_an_option_of_the_caller_s_never_becomes_one_of_the_program(worker: LiveWorker) -> None:
    assert "must not begin with '-'" in failure(worker, "echo:word=-n", BadOptions)
    assert worker.text("echo:word=%24HOME%3B%20%60id%60") == "$HOME; `id`\n"


def test_it_ends_with_its_worker(own: LiveWorker) -> None:
    own.ask("hangs")
    running: list[int] = []

    def has_begun() -> bool:
        running[:] = [int(pid) for pid in children_of(own).split()]
        inner = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in running]
        running.extend(int(pid) for pids in inner for pid in pids)
        return len(running) == 3

    wait_until(has_begun)
    own.kill()
    own.end()
    assert [pid for pid in running if is_running(pid)] == []


def test_standard_error_goes_to_the_log_alone(own: LiveWorker) -> None:
    says = failure(own, "whispers", TransformFailed)
    assert says == "the command of whispers ended with exit status 7"
    own.channel.close()
    assert own.printed() == b"my-password\n"
