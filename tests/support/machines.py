"""Machines in network namespaces, each with a link to one client's, that can vanish without a word."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

CLIENT = f"xformd-{os.getpid()}-client"


def ip(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Change links, addresses and routes."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=90)


class Machine:
    """A namespace with an address; the client's are ``client_address`` and a namespace of its own."""

    def __init__(self, number: int) -> None:
        self.namespace = f"xformd-{os.getpid()}-{number}"
        self.client_address, self.address = f"10.99.{number}.1", f"10.99.{number}.2"
        self.command = ("ip", "netns", "exec", self.namespace)
        ip("netns", "add", self.namespace)
        here, there = f"to-{number}", "eth0"
        ip("-n", CLIENT, "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.namespace)
        for namespace, link, address in (
            (CLIENT, here, self.client_address),
            (self.namespace, there, self.address),
        ):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
            ip("-n", namespace, "link", "set", link, "up")

    def vanish(self) -> None:
        """Answer nothing from now on, as a machine without power: not even a reset."""
        ip("-n", self.namespace, "route", "add", "blackhole", f"{self.client_address}/32")

    def come_back(self) -> None:
        """Answer again."""
        ip("-n", self.namespace, "route", "delete", "blackhole", f"{self.client_address}/32")

    def connections(self) -> int:
        """Count the established TCP connections."""
        return len(self.peers())

    def peers(self) -> set[str]:
        """Return the addresses and ports, as the kernel shows them, that its TCP connections lead to."""
        table = subprocess.run(
            [*self.command, "cat", "/proc/net/tcp"], check=True, capture_output=True, timeout=20
        ).stdout.decode()
        rows = (line.split() for line in table.splitlines()[1:])
        return {row[2] for row in rows if row[3] == "01"}


class Client:
    """The namespace that the machines are linked to, and what its processes know of names."""

    def __init__(self, folder: Path) -> None:
        self.hosts, self.resolver = folder / "hosts", folder / "resolv.conf"
        self.hosts.touch()
        self.resolver.touch()

    @property
    def command(self) -> Sequence[str]:
        """What to put before a command."""
        mounts = f"mount --bind {self.hosts} /etc/hosts && mount --bind {self.resolver} /etc/resolv.conf"
        return ("ip", "netns", "exec", CLIENT, "sh", "-c", f'{mounts} && exec "$0" "$@"')

    def name(self, name: str, *machines: Machine) -> None:
        """Let a name stand for these machines from now on."""
        self.hosts.write_text("".join(f"{machine.address} {name}\n" for machine in machines))


@contextmanager
def linked(folder: Path, count: int) -> Iterator[tuple[Client, list[Machine]]]:
    """Make a client's namespace and some machines, until the block ends; skip the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and ip(8): install iproute2")
    with ExitStack() as stack:
        try:
            ip("netns", "add", CLIENT)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        stack.callback(ip, "netns", "delete", CLIENT)
        ip("-n", CLIENT, "link", "set", "lo", "up")
        machines = []
        for number in range(count):
            machines.append(Machine(number))
            stack.callback(ip, "netns", "delete", machines[-1].namespace)
        yield Client(folder), machines
