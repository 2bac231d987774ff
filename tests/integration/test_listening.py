"""Where a server listens, what it says of it, and what it says where it cannot."""

import os
import signal
import socket
import ssl
from pathlib import Path

import pytest

from support.certificates import tls_endpoint
from support.processes import XFORMD, netstring, read_to_end, serving, xformd

pytestmark = pytest.mark.slow


def test_port_0_takes_a_free_port_and_names_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.greeting[0].startswith("xformd 0.1.0 listening on 127.0.0.1:")
        assert server.greeting[1].startswith("40 transforms from 5 plugins")
        assert not server.address.endswith(":0")
        assert server.ask(b"7:upper.a,") == b"1:A,"


def test_a_port_in_use_is_one_clear_line_and_no_other_place_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(tmp_path) as server:
        port = server.address.rpartition(":")[2]
        second = xformd("serve", "--listen", f"unix:{path}", "--port", port)
    assert (second.returncode, second.stdout) == (69, b"")
    assert second.stderr.decode() == (
        f"xformd: listen-failed: cannot listen on 127.0.0.1:{port}: address already in use; "
        "is another server running there? --port or --listen moves it\n"
    )
    assert not path.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", ""])
def test_the_line_about_a_port_in_use_names_the_flag_that_moves_it(tmp_path: Path, host: str) -> None:
    (tmp_path / "poem").write_text("a")
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        place = f"tcp:{port}:interface={host.replace(':', chr(92) + ':')}"
        failed = {
            "--http": xformd("serve", "--port=0", "--workers=0", "--http", place),
            "--metrics": xformd("serve", "--port=0", "--workers=0", "--metrics", place),
            "--port or --listen": xformd("poem", "serve", "--listen", place, str(tmp_path / "poem"), stdin=b""),
        }
    shown = {"127.0.0.1": "127.0.0.1", "::1": "[::1]", "": "*"}[host]
    says = f"xformd: listen-failed: cannot listen on {shown}:{port}: address already in use; is another server"
    for flag, ended in failed.items():
        assert ended.returncode == 69
        assert ended.stderr.decode().splitlines()[-1] == f"{says} running there? {flag} moves it"


@pytest.mark.parametrize("place", ["99999", "tcp:99999"])
def test_a_port_that_cannot_be_is_told_as_that(place: str) -> None:
    refused = xformd("serve", "--workers=0", "--plugins=none", "--http=none", "--listen", place)
    said = refused.stderr.decode().splitlines()[-1]
    assert (refused.returncode, said[:39]) == (69, "xformd: listen-failed: cannot listen on")
    assert said.endswith(": a port is 0 to 65535")


def test_the_line_about_a_unix_socket_in_use_names_the_flag_too(tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/socket"
    with serving(tmp_path, "--listen", place):
        second = xformd("serve", "--listen", place)
    assert second.stderr.decode() == (
        f"xformd: listen-failed: cannot listen on {place}: address already in use; "
        "is another server running there? --port or --listen moves it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--listen", "tcp:port"), 78, "'tcp:port': expected a number, got 'port'; write a Twisted server endpoint"),
        (("--listen", ""), 78, "invalid Twisted server endpoint '': write it as tcp:11000:interface=127.0.0.1"),
        (("--listen", "unix:/no/such/folder/socket"), 69, "cannot listen on unix:/no/such/folder/socket: No such file"),
        (("--host", "192.0.2.1", "--port", "0"), 69, "Cannot assign requested address"),
        (("--host", "no such host", "--port", "0"), 69, "cannot listen on tcp:0:interface=no such host"),
        (("--listen", "ssl:0:privateKey=/no/key.pem"), 78, "key.pem': /no/key.pem: No such file or directory"),
        (("--listen", "haproxy:ssl:0:key=a"), 78, "write a Twisted server endpoint"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(arguments: tuple[str, ...], status: int, says: str) -> None:
    refused = xformd("serve", *arguments)
    assert refused.returncode == status
    assert says in refused.stderr.decode()
    assert refused.stderr.count(b"\n") == 1


def test_several_places_at_once_and_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(tmp_path, "--listen", f"unix:{path}", "--port", "0") as server:
        assert server.greeting[1] == f"xformd 0.1.0 listening on unix:{path}"
        assert server.ask(b"7:upper.a,") == b"1:A,"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(netstring(b"upper.b"))
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"1:B,"
        sent = xformd("send", "upper", "--server", f"unix:{path}", stdin=b"c")
        assert (sent.returncode, sent.stdout) == (0, b"C")
        refused = xformd("send", "nope", "--server", f"unix:{path}", stdin=b"c")
        assert refused.returncode == 66
        assert server.stop() == 0
    assert not path.exists()


def test_ipv6(tmp_path: Path) -> None:
    with serving(tmp_path, "--listen", r"tcp6:0:interface=\:\:1") as server:
        assert server.address.startswith("[::1]:")
        sent = xformd("send", "upper", "--server", server.address, stdin=b"a")
        assert (sent.returncode, sent.stdout) == (0, b"A")
    with serving(tmp_path, "--host", "::1") as server:
        assert server.address.startswith("[::1]:")


def test_a_socket_that_systemd_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # What systemd does: the socket is descriptor 3, and the environment says for whom.
        start = f'exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=xformd exec "$@"'
        command = ("bash", "-c", start, "bash", *XFORMD)
        place = ("--listen", "systemd:domain=INET:index=0")
        with serving(tmp_path, *place, command=command, keep=(listening.fileno(),)) as server:
            assert server.address == f"127.0.0.1:{port}"
            assert server.ask(b"7:upper.a,") == b"1:A,"
            assert server.stop() == 0


def test_a_unix_socket_of_systemd_keeps_its_file_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        start = f'exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=xformd exec "$@"'
        command = ("bash", "-c", start, "bash", *XFORMD)
        place = ("--listen", "systemd:domain=UNIX:name=xformd")
        for _ in range(2):  # systemd starts it again, with the same socket
            with serving(tmp_path, *place, command=command, keep=(listening.fileno(),)) as server:
                assert server.address == f"unix:{path}"
                sent = xformd("send", "upper", "--server", server.address, stdin=b"a")
                assert (sent.returncode, sent.stdout) == (0, b"A")
                assert server.stop() == 0
                assert "Traceback" not in server.log
            assert path.stat().st_mode & 0o777 == 0o600


ON_UNIX_SOCKETS = {
    "serve": (("serve",), ("--listen", "--http", "--metrics"), ()),
    "proxy": (("proxy",), ("--listen",), ("127.0.0.1:1",)),
    "poem serve": (("poem", "serve"), ("--listen",), (__file__,)),
    "poem proxy": (("poem", "proxy"), ("--listen",), ("127.0.0.1:1",)),
}


@pytest.mark.parametrize("kind", ON_UNIX_SOCKETS)
def test_a_server_that_was_killed_starts_again_on_its_unix_sockets(kind: str, tmp_path: Path) -> None:
    verb, flags, what = ON_UNIX_SOCKETS[kind]
    paths = [tmp_path / flag.strip("-") for flag in flags]
    places = [word for flag, path in zip(flags, paths, strict=True) for word in (flag, f"unix:{path}")]
    ready = "transforms from" if verb == ("serve",) else "the "
    with serving(tmp_path, *places, *what, verb=verb, ready=ready) as server:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    for path in paths:
        lock = path.with_name(f"{path.name}.lock")
        lock.unlink()
        lock.symlink_to(str(os.getpid()))  # another process has its number now
    with serving(tmp_path, *places, *what, verb=verb, ready=ready) as server:
        for path in paths:
            assert path.stat().st_mode & 0o777 == 0o660
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert server.stop() == 0
    assert not any(path.exists() or path.with_name(f"{path.name}.lock").is_symlink() for path in paths)


TO_SESSION = (netstring(b"xformd/2") + netstring(b"1 upper.a"), b"1 ok.A,", b"0 shutting-down")


@pytest.mark.parametrize("exchange", [TO_SESSION, (b"7:upper.a,", b"1:A,", b"")], ids=["session", "classic"])
def test_an_idle_tls_client_that_does_not_read_holds_no_stop(
    tmp_path: Path, exchange: tuple[bytes, bytes, bytes]
) -> None:
    request, reply, last_word = exchange
    endpoint, trusted = tls_endpoint(tmp_path)
    context = ssl.create_default_context(cafile=trusted / "certificate.pem")
    with (
        serving(tmp_path, "--listen", endpoint, "--shutdown-grace-s", "60", "--write-timeout-s", "60") as server,
        context.wrap_socket(server.connect(), server_hostname="localhost") as session,
    ):
        session.sendall(request)
        received = b""
        while reply not in received:
            received += session.recv(1_000)
        assert server.stop() == 0
        assert last_word in read_to_end(session)


def test_tls(tmp_path: Path) -> None:
    endpoint, trusted = tls_endpoint(tmp_path)
    with serving(tmp_path, "--listen", endpoint) as server:
        port = server.address.rpartition(":")[2]
        address = f"tls:localhost:{port}:trustRoots={trusted}:endpoint=tcp\\:127.0.0.1\\:{port}"
        for poem in (b"a", b"x" * 1_000_000):
            sent = xformd("send", "upper", "--server", address, stdin=poem)
            assert (sent.stderr, sent.stdout) == (b"", poem.upper())
        refused = xformd("send", "nope", "--server", address, stdin=b"a")
        assert refused.returncode == 66
        assert b"no-such-transform" in refused.stderr
        assert server.stop() == 0
        assert "Traceback" not in server.log
