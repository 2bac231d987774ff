"""Whatever a plugin's code changes in its process is as it was afterwards, or is named."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import process_wide
from support.process_wide import CHANGES, KEPT, REPORTED
from xformd.plugins.process_state import ProcessState, isolated_import

pytestmark = pytest.mark.xdist_group("process_state")

Left = dict[str, dict[str, Any]]

OF_IMPORTS = {"random numbers", "other loggers off", "level of another's logger", "Twisted's log"}
"""Not put back after a job: random numbers are drawn anew, and there are too many loggers to compare them all."""

FOR_ROOT = {"niceness"}
"""Who is not root cannot put these back."""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What is seen of each change that is made at an import, and in a job."""
    results = {}
    for isolation in ("import", "job"):
        file = tmp_path_factory.mktemp("left") / isolation
        command = [sys.executable, process_wide.__file__, isolation, str(file)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=300, env=environment)
        results[isolation] = json.loads(file.read_text())
    return results


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - KEPT - REPORTED.keys()))
def test_a_change_does_not_outlive_an_import_or_a_job(left: dict[str, Left], change: str) -> None:
    if change in FOR_ROOT and os.geteuid():
        pytest.skip("only root can put it back")
    assert left["import"][change]["meanwhile"], "it changes nothing, so this test shows nothing"
    assert (left["import"][change]["left"], left["import"][change]["reports"]) == ({}, [])
    if change not in OF_IMPORTS:
        assert left["job"][change]["left"].keys() <= {"random"}
        assert left["job"][change]["reports"] == []


@pytest.mark.parametrize("change", sorted(KEPT))
def test_what_a_plugin_needs_later_stays(left: dict[str, Left], change: str) -> None:
    assert left["import"][change]["left"]


@pytest.mark.parametrize(("change", "report"), REPORTED.items())
def test_what_cannot_be_put_back_is_named(left: dict[str, Left], change: str, report: str) -> None:
    assert left["import"][change]["reports"] == [report]


def test_a_job_that_seeds_random_numbers_makes_none_predictable() -> None:
    state, before = ProcessState(for_jobs=True), random.getstate()
    drawn = set()
    for _ in range(2):
        random.seed(1)
        state.restore()
        drawn.add(random.random())
    state.close()
    random.setstate(before)
    assert len(drawn) == 2


def test_a_facet_whose_value_cannot_even_be_compared_is_named() -> None:
    class Hook:
        def __eq__(self, other: object) -> bool:
            raise KeyError(other)

        def __hash__(self) -> int:
            return 1

        def __call__(self, *_: object) -> None:
            pass

    state, before = ProcessState(), signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, Hook())
    lost = state.restore()
    state.close()
    assert lost in ([], ["signal handlers"])
    assert signal.getsignal(signal.SIGUSR2) == before


def test_an_import_finds_nothing_on_standard_input() -> None:
    with isolated_import(pytest.fail):
        assert Path("/dev/stdin").resolve() == Path(os.devnull)
        assert os.read(0, 1) == b""


def test_an_import_is_isolated_where_standard_descriptors_are_closed() -> None:
    code = (
        "import os\n"
        "from xformd.plugins.process_state import isolated_import\n"
        "os.closerange(0, 3)\n"
        "with isolated_import(lambda _: os._exit(3)):\n"
        "    assert os.read(0, 1) == b''\n"
        "assert os.open('/', 0) == 1\n"
        "os._exit(4)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=90, check=False).returncode == 4
