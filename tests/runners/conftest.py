"""A plugin of transforms that misbehave."""

from pathlib import Path

import pytest

HOSTILE = """
import atexit, json, mmap, os, random, shutil, signal, socket, subprocess, sys, tempfile, threading, time
import xformd

@xformd.transform
def shout(poem: str, *, marks: int = 1) -> str:
    return poem.upper() + "!" * marks

@xformd.transform
def refuse(poem: str) -> str:
    raise xformd.GibberishError("not in my house")

@xformd.transform
def broken(poem: str) -> str:
    raise ValueError("no \\\\x00 poem")

@xformd.transform
def leave(poem: str) -> str:
    raise SystemExit(7)

@xformd.transform
def wrong(poem: str) -> str:
    return 3

@xformd.transform
def gossip(poem: str) -> str:
    print("to print", poem)
    os.write(1, b"to descriptor 1\\n")
    print("to stderr", file=sys.stderr)
    return poem + sys.stdin.read()

@xformd.transform
def grow(poem: bytes) -> bytes:
    return b"x" * 1_000_001

@xformd.transform
def grow_text(poem: str) -> str:
    return "\\u00e9" * 1_000_001

@xformd.transform(result_bytes=lambda poem_bytes: 2 * poem_bytes)
def double(poem: bytes) -> bytes:
    return 2 * poem

@xformd.transform
def hoard(poem: bytes) -> bytes:
    hoard = [None] * 1_000_000  # a list that grows would be the first to find no room
    index = 0
    for size in [1 << 26, 1 << 20, 1 << 14, 1 << 12, 1 << 10, 1 << 9, *range(496, 0, -16), 2]:
        try:
            while True:
                hoard[index] = bytes(size)
                index += 1
        except MemoryError:
            pass
    raise MemoryError

@xformd.transform
def twofold(poem: str) -> str:
    child = os.fork()
    if child == 0 and poem == "raise":
        raise ValueError("as a child")
    if child:
        os.waitpid(child, 0)
    return poem

@xformd.transform(memory=100_000_000)
def modest(poem: bytes) -> bytes:
    return b"%d" % len(bytearray(int(poem)))

@xformd.transform(memory=2**40)
def greedy(poem: bytes) -> bytes:
    return b"%d" % len(bytes(int(poem)))

@xformd.transform
def interrupted(poem: bytes) -> bytes:
    files = [tempfile.TemporaryFile() for _ in range(20)]
    signal.raise_signal(signal.SIGTERM)
    for file in files:
        file.seek(0)
    return b"".join(file.read() for file in files)

@xformd.transform
def child_signal(poem: str) -> str:
    return str(signal.getsignal(signal.SIGCHLD).name)

@xformd.transform(memory=1_000_000)
def tiny(poem: bytes) -> bytes:
    return poem

@xformd.transform
def die(poem: str) -> str:
    os.kill(os.getpid(), getattr(signal, poem)) if poem.startswith("SIG") else os._exit(int(poem))

@xformd.transform
def pids(poem: str) -> str:
    return f"{os.getpid()} {os.getppid()} {os.getsid(0)}"

@xformd.transform
def detach(poem: str) -> str:
    started = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(1000)
        os.write(writing, b"%d" % grandchild)
        signal.raise_signal(signal.SIGKILL)
    return f"{started.pid} {os.read(reading, 100).decode()}"

@xformd.transform
def block(poem: str) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
    return poem

@xformd.transform
def close_all(poem: str) -> str:
    os.closerange(0, 100)
    return poem

@xformd.transform
def meddle(poem: str) -> str:
    started = subprocess.Popen(["sleep", "1000"])
    open("litter", "w").close()
    os.chdir("/")
    os.umask(0)
    os.environ["OWL"] = "1"
    os.environ.pop("PATH", None)
    socket.setdefaulttimeout(3)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.alarm(1000)
    sys.stdout = sys.stdin = None
    os.close(2)
    return str(started.pid)

@xformd.transform
def look(poem: str) -> str:
    umask = os.umask(0)
    os.umask(umask)
    handlers = [str(signal.getsignal(n)).partition(" at ")[0] for n in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)]
    return json.dumps({
        "files": os.listdir(),
        "umask": umask,
        "environment": sorted(os.environ),
        "timeout": socket.getdefaulttimeout(),
        "handlers": handlers,
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "descriptors": [os.path.exists(f"/proc/self/fd/{n}") for n in range(3)],
        "streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__],
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
    })

@xformd.transform
def folder(poem: str) -> str:
    open("kept", "w").write(poem)
    return os.getcwd()

@xformd.transform
def terminate(poem: str) -> str:
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(1000)
    os.kill(child, getattr(signal, poem))
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

@xformd.transform
def farewell(poem: str) -> str:
    atexit.register(print, poem)
    return poem

@xformd.transform
def linger(poem: str) -> str:
    atexit.register(time.sleep, 1000)
    return poem

@xformd.transform
def reserve(poem: str) -> str:
    kept = mmap.mmap(-1, 2**36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
    return str(len(kept))

@xformd.transform
def crowd(poem: str) -> str:
    barrier = threading.Barrier(24)
    def work():
        kept = [bytes(1000) for _ in range(1000)]
        barrier.wait()
    threads = [threading.Thread(target=work) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return poem

@xformd.transform
def luck(poem: str) -> str:
    return str(random.random())

@xformd.transform
def badness(poem: str) -> str:
    return open("/proc/self/oom_score_adj").read()

@xformd.hookimpl
def xformd_transforms():
    return [t for t in globals().values() if isinstance(t, xformd.Transform)]
"""


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's folder."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "hostile.py").write_text(HOSTILE)
    return folder
