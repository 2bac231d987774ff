"""SIGHUP: what pip has changed is there, and nothing is lost by it, neither requests nor what worked before."""

import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import packages
from support.hostile import Hostile, codes, hostile_server, new_marker
from support.packages import Environment, Package
from support.processes import wait_until
from support.session_client import Answer, Load, Session, step

pytestmark = pytest.mark.slow

OUTSTANDING = 4

MODULE = """
import xformd

{before}
@xformd.transform(name="{name}", examples=[("Owl", "Owl {version}")])
def edition(poem: str) -> str:
    return poem + " {version}"


@xformd.hookimpl
def xformd_transforms():
    return [edition]
"""


def epoch(version: str, *, before: str = "", name: str = "edition") -> Package:
    """Give a version of a small plugin, whose transform adds its version to the poem."""
    text = MODULE.format(version=version, before=before, name=name)
    return Package("xformd-edition", {"edition": "xformd_edition"}, {"xformd_edition.py": text}, version)


EDITIONS: Mapping[str, Package] = {
    "first": epoch("1.0"),
    "second": epoch("2.0"),
    "broken": epoch("3.0", before="raise ValueError('unfinished')"),
    "renamed": epoch("4.0", name="tome"),
    "exits-in-workers": epoch("5.0", before="import os\nif os.getpid() != {server}: os._exit(1)"),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the editions, by their names here."""
    folder = tmp_path_factory.mktemp("editions")
    return {name: build(package, folder / name) for name, package in EDITIONS.items() if name != "exits-in-workers"}


def build(package: Package, folder: Path) -> Path:
    """Build a wheel from nothing but a package."""
    return packages.build_wheel(packages.write(package, folder), folder)


@contextmanager
def serving_edition(folder: Path, wheel: Path) -> Iterator[tuple[Hostile, Environment]]:
    """Run a server with an edition in an environment of its own, which the test may change."""
    environment = packages.create_environment(folder / "environment")
    packages.install(environment, [wheel])
    with hostile_server(environment, folder, "--plugins=xformd-edition") as hostile:
        yield hostile, environment


def answers_with(hostile: Hostile, version: str) -> bool:
    """Whether a request is answered by this version now."""
    with Session(hostile.server) as session:
        return session.ask("edition", b"poem").poem == f"poem {version}".encode()


def reload(hostile: Hostile) -> None:
    hostile.server.process.send_signal(signal.SIGHUP)


def test_a_plugin_upgraded_with_pip_answers_anew_after_sighup_and_no_request_fails(
    tmp_path: Path, wheels: dict[str, Path]
) -> None:
    seen: list[Answer] = []
    with serving_edition(tmp_path, wheels["first"]) as (hostile, environment):
        with Load(hostile.server, "edition", outstanding=OUTSTANDING, seen=seen.append) as load:
            wait_until(lambda: load.codes["ok"] > 20)
            packages.install(environment, [wheels["second"]])
            assert answers_with(hostile, "1.0")
            reload(hostile)
            wait_until(lambda: answers_with(hostile, "2.0"))
            after = load.total
            wait_until(lambda: load.total > after + 100)
        assert (load.trouble, set(load.codes)) == ("", {"ok"})
        versions = [answer.poem.split()[-1] for answer in seen]
        assert (versions[0], versions[-1]) == (b"1.0", b"2.0")
        # What was in flight when it was first seen may end on the old one, and nothing else.
        assert versions[after:].count(b"1.0") <= OUTSTANDING


@pytest.mark.parametrize("worse", ["broken", "renamed"])
def test_a_reload_that_would_break_what_worked_is_refused_and_logged(
    tmp_path: Path, wheels: dict[str, Path], worse: str
) -> None:
    with serving_edition(tmp_path, wheels["first"]) as (hostile, environment):
        assert answers_with(hostile, "1.0")
        packages.install(environment, [wheels[worse]])
        reload(hostile)
        wait_until(lambda: bool(re.search("(?i)reload.*edition|edition.*reload", hostile.server.log)))
        assert answers_with(hostile, "1.0")
        packages.install(environment, [wheels["second"]])
        reload(hostile)
        wait_until(lambda: answers_with(hostile, "2.0"))


def test_a_reload_whose_workers_do_not_start_is_refused(tmp_path: Path, wheels: dict[str, Path]) -> None:
    """The server itself loads the plugin, and its workers die of it."""
    with serving_edition(tmp_path, wheels["first"]) as (hostile, environment):
        package = EDITIONS["exits-in-workers"]
        text = package.files["xformd_edition.py"].replace("{server}", str(hostile.server.process.pid))
        worse = Package(package.distribution, package.entry_points, {"xformd_edition.py": text}, package.version)
        packages.install(environment, [build(worse, tmp_path / "worse")])
        reload(hostile)
        wait_until(lambda: bool(re.search("(?i)reload", hostile.server.log)))
        # Whatever the log says first, and for as long as workers are tried again.
        ends_at = time.monotonic() + 2
        wait_until(lambda: not answers_with(hostile, "1.0") or time.monotonic() > ends_at)
        assert answers_with(hostile, "1.0")


def test_what_is_in_flight_ends_on_the_old_generation(hostile_environment: Environment, tmp_path: Path) -> None:
    marker = new_marker()
    with hostile_server(hostile_environment, tmp_path) as hostile, Session(hostile.server) as session:
        old = hostile.worker_pids()
        (running,) = session.send((f"{step('sleep', seconds=2, marker=marker)}+pid", b"poem"))
        hostile.wait_for(marker)
        reload(hostile)
        wait_until(lambda: not (hostile.worker_pids() & old))
        (answer,) = session.collect([running])
        assert answer.code == "ok"
        assert int(answer.poem.split()[-1]) in old
        # Nothing of the old generation stays once it has nothing to do.
        wait_until(lambda: not (hostile.processes() & old))


def test_a_sighup_every_second_fails_no_request_under_load(hostile_environment: Environment, tmp_path: Path) -> None:
    """Three of them here; ten and ten thousand requests in ``make soak``."""
    with hostile_server(hostile_environment, tmp_path) as hostile:
        old = hostile.worker_pids()
        with Load(hostile.server, "pid", outstanding=OUTSTANDING) as load:
            for _ in range(3):
                reload(hostile)
                next_at = time.monotonic() + 1
                wait_until(lambda next_at=next_at: time.monotonic() >= next_at)  # type: ignore[misc]
            wait_until(lambda: not (hostile.worker_pids() & old))
        assert (load.trouble, set(load.codes)) == ("", {"ok"})
        with Session(hostile.server) as session:
            assert codes([session.ask("pid")]) == ["ok"]
