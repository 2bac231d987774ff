"""SIGHUP: what pip has changed is there, and nothing is lost by it, neither requests nor what worked before."""

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import packages
from support.hostile import Hostile, Hosting, hostile_server, new_marker, within
from support.packages import Environment, Package
from support.processes import wait_until
from support.session_client import Answer, Load, Session, step

pytestmark = pytest.mark.slow

OUTSTANDING = 4

MODULE = """
import xformd

{before}
@xformd.transform(name="{name}", examples=[("Owl", "Owl {promised}")])
def edition(poem: str) -> str:
    return poem + " {version}"


@xformd.hookimpl
def xformd_transforms():
    return [edition]
"""


def epoch(version: str, *, before: str = "", name: str = "edition", promised: str = "") -> Package:
    """Write a version of a small plugin, whose transform adds its version to the poem, as its example promises."""
    text = MODULE.format(version=version, before=before, name=name, promised=promised or version)
    text += "#" * int(float(version))  # Python takes what has the same size and second for the same
    return Package("xformd-edition", {"edition": "xformd_edition"}, {"xformd_edition.py": text}, version)


EDITIONS: Mapping[str, Package] = {
    "first": epoch("1.0"),
    "second": epoch("2.0"),
    "broken": epoch("3.0", before="raise ValueError('unfinished')"),
    "renamed": epoch("4.0", name="tome"),
    "wrong": epoch("5.0", promised="5.1"),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the editions, by their names here."""
    folder = tmp_path_factory.mktemp("editions")
    return {
        name: packages.build_wheel(packages.write(package, folder / name), folder / name)
        for name, package in EDITIONS.items()
    }


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


@pytest.mark.parametrize("worse", ["broken", "renamed", "wrong"])
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


def test_a_sighup_every_second_fails_no_request_and_old_ones_end_on_old_workers(hosting: Hosting) -> None:
    """Three reloads here; ten and ten thousand requests in ``make soak``."""
    marker = new_marker()
    with hosting() as hostile, Session(hostile.server) as session:
        old = hostile.worker_pids()
        (running,) = session.send((f"{step('sleep', seconds=4, marker=marker)}+pid", b"poem"))
        hostile.wait_for(marker)
        with Load(hostile.server, "pid", outstanding=OUTSTANDING) as load:
            for _ in range(3):
                reload(hostile)
                within(1, lambda: False)
            wait_until(lambda: not (hostile.worker_pids() & old))
        assert (load.trouble, set(load.codes)) == ("", {"ok"})
        (answer,) = session.collect([running])
        assert answer.code == "ok"
        assert int(answer.poem.split()[-1]) in old
        # Nothing of the old generation stays once it has nothing to do.
        wait_until(lambda: not (hostile.processes() & old))
        assert session.ask("pid").code == "ok"
