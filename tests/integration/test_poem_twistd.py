"""``twistd xformd-poem``, as Twisted people start everything else."""

import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support.poems import ANYWHERE
from support.processes import DEADLINE_S, Server, environment, serving, wait_until

TWISTD = (str(Path(sysconfig.get_path("scripts")) / "twistd"), "--nodaemon", "--pidfile=")
POEM = b"The Owl and the Pussy-cat\n"


def address_of(server: Server) -> Server:
    server.address = server.greeting[-1].rpartition(" ")[2]
    return server


def test_a_server_and_a_proxy_in_front_of_it(tmp_path: Path) -> None:
    (tmp_path / "owl.txt").write_bytes(POEM)
    own = tmp_path / "proxy"
    own.mkdir()
    words = {"command": TWISTD, "ready": "listening on"}
    with serving(
        tmp_path,
        *("--listen", ANYWHERE, "--slow", "1KiB", str(tmp_path / "owl.txt")),
        verb=("xformd-poem", "serve"),
        **words,  # type: ignore[arg-type]
    ) as server:
        upstream = address_of(server).address
        assert server.ask(b"") == POEM
        with serving(
            own,
            *("--listen", ANYWHERE, "--ttl", "60", "--max-bytes", "1MiB", upstream),
            verb=("xformd-poem", "proxy"),
            **words,  # type: ignore[arg-type]
        ) as proxy:
            assert address_of(proxy).ask(b"") == POEM
            assert server.stop() == -signal.SIGTERM  # twistd's way to say that it did as it was told
            assert proxy.ask(b"") == POEM
            assert proxy.stop() == -signal.SIGTERM
            wait_until(lambda: proxy.log == "")


def refused(*arguments: str, status: int = 1) -> str:
    """Run twistd, which must end by itself, and give what it says."""
    done = subprocess.run(
        [*TWISTD, *arguments], capture_output=True, env=environment(), timeout=DEADLINE_S, check=False
    )
    assert done.returncode == status
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say 'serve FILE' or 'proxy UPSTREAM'"),
        (("serve", "/no/such/file"), "xformd: bad-config: cannot serve /no/such/file: No such file or directory"),
        (("serve", "README.md", "--slow", "1"), "'--slow' comes after FILE: options go before it"),
        (("serve", "--slow", "0", "README.md"), "'0' is no number of bytes above 0"),
        (("proxy", "127.0.0.1:1", "--ttl", "1"), "'--ttl' comes after UPSTREAM: options go before it"),
        (("proxy", "--ttl", "soon", "127.0.0.1:1"), "'soon' is no number of seconds"),
        (("proxy", "--timeout", "0", "127.0.0.1:1"), "'0' is no number of seconds above 0"),
        (
            ("proxy", "--listen", "unix:/no/such/socket", "127.0.0.1:1"),
            "cannot listen on unix:/no/such/socket: No such",
        ),
    ],
)
def test_what_cannot_be_ends_twistd_and_is_said(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("xformd-poem", *arguments)
