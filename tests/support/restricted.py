"""Run a command under the restrictions of a systemd unit, without systemd.

Mounts, user, capabilities and system calls are made from the unit's own lines, in this process, which then becomes the
command. No daemon is started. Invariant: nothing is mounted before this process has a mount namespace of its own, from
which nothing propagates; it refuses to work in its caller's.
"""

import ctypes
import errno
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

UID = 61_184
"""The first of those that systemd gives to a ``DynamicUser``."""

DEVICES = ("null", "zero", "full", "random", "urandom")
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
NAMESPACES = 0x7E020080
"""The flags CLONE_NEW... of clone(2)."""

_STAGE = Path("/mnt")
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQ, _MASKED_EQ = 4, 7
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 24, 38, 65

_libc = ctypes.CDLL(None, use_errno=True)


class _Comparison(ctypes.Structure):
    """A ``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def why_not() -> str:
    """Return why nothing can be restricted here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to make a mount namespace"
    try:
        _seccomp()
        found = subprocess.run(["systemd-analyze", "syscall-filter", "@default"], capture_output=True, check=False)
        private = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    except OSError:
        return "needs systemd-analyze, libseccomp and unshare: apt-get install systemd"
    return "" if found.returncode == private.returncode == 0 else "needs the right to make namespaces"


def command(unit: Path, folder: Path, *words: str) -> list[str]:
    """Return the command that runs another under the restrictions of a unit, which may write to the folder alone."""
    here = _namespace("self")
    unshare = ("unshare", "--mount", "--propagation=private", sys.executable, __file__)
    return [*unshare, here, str(unit), str(folder), *words]


def _namespace(pid: int | str) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())


def _read(unit: Path) -> dict[str, list[str]]:
    lines = re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE)
    return {name: [value for each, value in lines if each == name] for name, _ in lines}


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _restrict_files(folder: Path) -> None:
    """Do what ProtectSystem, ProtectHome, PrivateTmp, PrivateDevices, ProtectProc and ProtectKernelTunables do."""
    root = Path(__file__).resolve().parents[2]
    kept = [*dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), root, folder])]
    hidden = [path for path in (Path("/root"), Path("/home"), Path("/tmp"), Path("/var/tmp")) if path.is_dir()]
    _mount("-t", "tmpfs", "tmpfs", _STAGE)
    for number, path in enumerate(kept):
        (_STAGE / str(number)).mkdir()
        _mount("--bind", path, _STAGE / str(number))
    (_STAGE / "dev").mkdir()
    _mount("--bind", "/dev", _STAGE / "dev")
    for path in hidden:
        _mount("-t", "tmpfs", "-o", f"mode={'1777' if path.name == 'tmp' else '755'}", "tmpfs", path)
    for number, path in enumerate(kept):
        if any(path.is_relative_to(each) for each in hidden):
            path.mkdir(parents=True, exist_ok=True)
            _mount("--bind", _STAGE / str(number), path)
            if path != folder:
                _mount("-o", "remount,bind,ro", path)
        elif path == folder:
            _mount("--bind", path, path)
    _make_devices(_STAGE / "dev")
    subprocess.run(["umount", "--recursive", "--lazy", _STAGE], check=True)
    _mount("-t", "proc", "-o", "hidepid=invisible", "proc", "/proc")
    _mount("--bind", "/proc/sys", "/proc/sys")
    for place in ("/", "/sys", "/proc/sys"):
        _mount("-o", "remount,bind,ro", place)


def _make_devices(outside: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev")
    for name in DEVICES:
        Path("/dev", name).touch()
        _mount("--bind", outside / name, Path("/dev", name))
    Path("/dev/shm").mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        Path("/dev", name).symlink_to(f"/proc/self/fd/{number}")
    Path("/dev/fd").symlink_to("/proc/self/fd")


def _seccomp() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _system_calls(filters: Sequence[str]) -> set[str]:
    """Return the names that lines of ``SystemCallFilter=`` leave."""

    def expand(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        names = [line.strip() for line in listed.stdout.splitlines()[1:] if not line.strip().startswith("#")]
        return set().union(*map(expand, filter(None, names)))

    allowed = expand("@default")
    for line in filters:
        names = set().union(*map(expand, line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def _filter_system_calls(names: set[str], families: Sequence[str]) -> None:
    """Do what SystemCallFilter, RestrictNamespaces and RestrictAddressFamilies do."""
    library = _seccomp()
    rules = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))

    def add(name: str, action: int = _ALLOW, *comparisons: _Comparison) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # of another architecture
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        if library.seccomp_rule_add_array(rules, action, number, len(comparisons), array) < 0:
            raise OSError(f"no rule can be made for {name}")

    for name in names - {"socket", "clone", "clone3", "unshare", "setns"}:
        add(name)
    for family in families:
        add("socket", _ALLOW, _Comparison(0, _EQ, FAMILIES[family], 0))
    add("clone", _ALLOW, _Comparison(0, _MASKED_EQ, NAMESPACES, 0))
    add("clone3", _ERRNO | errno.ENOSYS)  # whose flags no filter sees: programs go on with clone
    if library.seccomp_load(rules) < 0:
        raise OSError("the filter cannot be loaded")


def _prctl(*arguments: int) -> None:
    if _libc.prctl(*map(ctypes.c_ulong, (*arguments, *[0] * (5 - len(arguments))))) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(outside: str, unit: str, folder: str, *words: str) -> None:
    """Restrict this process, and become the command."""
    here = _namespace("self")
    if here in (outside, _namespace(os.getppid())):
        raise SystemExit("this is no mount namespace of its own: nothing was changed")
    _mount("--make-rprivate", "/")
    settings = _read(Path(unit))
    names = _system_calls(settings["SystemCallFilter"])
    _restrict_files(Path(folder))
    if settings["CapabilityBoundingSet"] == [""]:
        for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
            _prctl(_PR_CAPBSET_DROP, capability)
    os.umask(int(settings["UMask"][0], 8))
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if settings["MemoryDenyWriteExecute"] == ["yes"]:
        _prctl(_PR_SET_MDWE, 1)
    _filter_system_calls(names, settings["RestrictAddressFamilies"][0].split())
    os.environ["HOME"] = "/"
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(*sys.argv[1:])
