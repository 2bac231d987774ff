"""The image of docs/deploy: built, with a plugin on top, and run as strangers to it would: any user, read-only, PID 1.

By podman where it is and has a base; and where this machine allows it, by carrying out the steps of the Dockerfile in a
chroot. The names of the tests say which.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.images import USER, Builder, Container, instructions, make_image, own_lines, words

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("image")]

STATE = """
import errno, json, os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return errno.errorcode[error.errno]
fields = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs")
state = {field: status[field].split() for field in fields}
print(json.dumps({**state, "writes": [write(path) for path in ("/opt/xformd/new", "/tmp/new", "/etc/new")]}))
"""


@pytest.fixture(scope="module", params=["podman", "steps"])
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    builder: Builder = request.param
    image = make_image(builder, tmp_path_factory.mktemp("image"))
    with image.running(XFORMD_REQUIRE="xformd-shout==0.1.*", XFORMD_WORKERS="1") as running:
        yield running
        assert running.end() == 0  # SIGTERM to the first process


def test_it_listens_on_its_ports_with_the_plugin(container: Container) -> None:
    ports = [line.rpartition(":")[2] for line in container.server.greeting if " listening on " in line]
    assert ports == ["11000", "11080", "9100"]
    assert container.run("xformd", "send", "shout", stdin=b"owl").stdout == b"OWL!"


def test_it_is_healthy_as_its_health_check_says(container: Container) -> None:
    checked = container.run(*words("HEALTHCHECK"))
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_it_needs_no_user_no_capability_and_no_file_to_write(container: Container) -> None:
    state = json.loads(container.run("/opt/xformd/bin/python3", "-c", STATE).stdout)
    assert state["Uid"] == state["Gid"] == [str(USER)] * 4
    assert int(state["CapEff"][0], 16) == int(state["CapBnd"][0], 16) == 0
    assert ({*state["Groups"]} <= {str(USER)}, state["NoNewPrivs"]) == (True, ["1"])
    assert set(state["writes"]) <= {"EROFS", "EACCES"}
    assert "EROFS" in state["writes"]


def test_commands_run_transforms_there_too(container: Container) -> None:
    assert container.run("xformd", "run", "shout:marks=3", stdin=b"owl").stdout == b"OWL!!!"
    assert container.run("xformd", "check", "xformd-shout").returncode == 0


def test_plugins_are_added_in_three_lines() -> None:
    assert [name for name, _ in instructions(own_lines())] == ["FROM", "USER", "RUN", "USER"]
    assert own_lines().replace("xformd-shout==0.1.0", "xformd-images==1.2.3") in _page()


def _page() -> str:
    return (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
