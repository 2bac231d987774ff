"""``make soak``: three minutes of good and hostile load, for the promises that only time and load can break.

It prints its state every few seconds, and ends with status 1 if a promise is broken.
"""

import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import attrs

from support import hostile
from support.faults import FAULTS, MEDDLERS, HostileCase
from support.hostile import GONE_S, MIB, Hostile, hostile_server, new_marker, within
from support.processes import resident_bytes, wait_until
from support.session_client import Load, Session, step

POEM_BYTES = 1_000

HOSTILE, FLEETING = "127.0.0.2", "127.0.0.3"
"""Where hostile requests come from, and clients that leave: they are not the good ones, which come from 127.0.0.1."""

LENGTH_S = 170.0
HARD_END_S = 300
"""If it is not over by then, something hangs."""

SETTLED_S = 20.0
GROWTH_MAX_BYTES = 10 * MIB

ROUNDS, WINDOW_S = 5, 3.0
SETTLE_S = 0.8
"""Before each window: crashed workers are replaced by then."""

CRASHES_A_ROUND = 20
GOOD_SHARE = 0.8

COME_AND_GO_S = 1.0
"""A client that leaves costs its workers: more often, mostly starts of workers would be measured."""

RELOAD_REQUESTS, RELOADS = 10_000, 10


@attrs.define
class Soak:
    """A soak under way: its server, the broken promises as sentences, and the answers to hostile requests."""

    hostile: Hostile
    began_at: float = attrs.field(factory=time.monotonic)
    broken: list[str] = attrs.field(factory=list)
    hostile_codes: Counter[str] = attrs.field(factory=Counter)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_at

    def say(self, text: str) -> None:
        print(f"{self.elapsed_s:6.1f} s  {text}", flush=True)

    def judge(self, is_kept: bool, text: str) -> None:
        """Print a figure, and remember it if it breaks a promise."""
        self.say(f"{'ok' if is_kept else 'BROKEN'}: {text}")
        if not is_kept:
            self.broken.append(text)

    def judge_good(self, load: Load, name: str) -> None:
        bad = {code: count for code, count in load.codes.items() if code != "ok"}
        failed = bad or load.trouble
        self.judge(not failed, f"{name}: {load.total} good requests; failed: {failed or 0}")

    def reload(self) -> None:
        self.hostile.server.process.send_signal(signal.SIGHUP)

    def good(self, outstanding: int = 4) -> Load:
        """Return a load of good requests that run in workers."""
        return Load(self.hostile.server, "pid", outstanding=outstanding, padding_bytes=POEM_BYTES)


def main() -> int:
    """Run the soak; return the exit status."""
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"BROKEN: not over after {HARD_END_S} s"))
    signal.alarm(HARD_END_S)
    with tempfile.TemporaryDirectory(prefix="xformd-soak-") as name:
        folder = Path(name)
        with hostile_server(hostile.install(folder), folder, XFORMD_SHUTDOWN_GRACE_S="10") as running:
            soak = Soak(running)
            run(soak)
        if soak.broken:
            print(f"the end of its log:\n{running.server.log[-2_000:]}")
    print("\n".join(f"BROKEN: {text}" for text in soak.broken) or "every promise was kept")
    return int(bool(soak.broken))


def run(soak: Soak) -> None:
    mix(soak, until_s=SETTLED_S)
    settled_bytes = resident_bytes(soak.hostile.server)
    soak.say(f"resident memory of the server: {settled_bytes / MIB:.1f} MiB")
    compare_throughput(soak)
    reload_under_load(soak)
    mix(soak, until_s=LENGTH_S)
    grown_bytes = resident_bytes(soak.hostile.server) - settled_bytes
    soak.judge(grown_bytes <= GROWTH_MAX_BYTES, f"resident memory grew by {grown_bytes / MIB:.1f} MiB; 10 are allowed")
    stop(soak)


def mix(soak: Soak, until_s: float) -> None:
    """Send good traffic and every kind of hostile one, with a SIGHUP now and then."""
    with soak.good() as load, soak.good(outstanding=1) as other, beside(misbehave, soak), beside(come_and_go, soak):
        while soak.elapsed_s < until_s:
            wait_until_s(soak, min(until_s, soak.elapsed_s + 10))
            soak.reload()
            memory = f"{resident_bytes(soak.hostile.server) / MIB:.1f} MiB"
            soak.say(f"{load.total + other.total} good, {soak.hostile_codes.total()} hostile, {memory}, SIGHUP")
    for each in (load, other):
        soak.judge_good(each, "mixed load")
    soak.say(f"hostile: {dict(soak.hostile_codes)}")


def wait_until_s(soak: Soak, elapsed_s: float) -> None:
    """Wait while the load goes on; end the soak if the server dies."""
    process = soak.hostile.server.process
    within(elapsed_s - soak.elapsed_s, lambda: process.poll() is not None)
    assert process.poll() is None, f"the server ended with {process.poll()}: {soak.hostile.server.log[-2_000:]}"


@contextmanager
def beside(work: Callable[[Soak, threading.Event], None], soak: Soak) -> Iterator[None]:
    """Run work in a thread until the block ends; an error in it counts as a broken promise."""
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(work, soak, is_over)
        try:
            yield
        finally:
            is_over.set()
            if error := done.exception():
                soak.judge(False, f"{work.__name__}: {type(error).__name__}: {error}")


def misbehave(soak: Soak, is_over: threading.Event) -> None:
    """Send every hostile request in turn; a quarantined one may be unavailable."""
    requests = cycle((*FAULTS, *(HostileCase(name, ("ok",)) for name in MEDDLERS)))
    with Session(soak.hostile.server, HOSTILE) as session:
        while not is_over.is_set():
            raised = next(requests)
            marked = {} if raised.name == "never" else {"marker": new_marker()}
            limit_ms = 300 if raised.code == ("timeout",) else 10_000
            answer = session.ask(step(raised.name, **raised.options, **marked), b"The Owl", timeout_ms=limit_ms)
            soak.hostile_codes[answer.code] += 1
            if answer.code not in (*raised.code, "unavailable"):
                soak.judge(False, f"{raised}: {answer.code} in place of {raised.code}: {answer.poem[:100]!r}")


def come_and_go(soak: Soak, is_over: threading.Event) -> None:
    """Be clients that start long requests and leave, cancel, or disconnect in the middle of one."""
    while not is_over.wait(COME_AND_GO_S):
        with Session(soak.hostile.server, FLEETING) as session:
            ids = session.send(*[(step("sleep", seconds=5), b"poem")] * 5)
            session.cancel(ids[0])
            soak.hostile_codes[session.collect(ids[:1])[0].code] += 1
            session.abort()
        with soak.hostile.server.connect(FLEETING) as connection:
            connection.sendall(b"100:pid.half a po")


def compare_throughput(soak: Soak) -> None:
    """Measure good traffic alone and beside crashes, in turn.

    One transform crashes in a hundred requests for it, where quarantine is part of the answer; and many crash, each too
    seldom for quarantine.
    """
    good: Counter[str] = Counter()
    fresh = (f"crash-{number}" for number in range(ROUNDS + 1, 26))
    with soak.good(outstanding=8) as load:
        for number in range(1, ROUNDS + 1):
            good["alone"] += measure(soak, load, [])
            good["crashing"] += measure(soak, load, [f"crash-{number}"] * CRASHES_A_ROUND)
            four = [next(fresh) for _ in range(4)]
            good["scattered"] += measure(soak, load, four * 4)
            soak.say(f"good requests so far: {dict(good)}")
    soak.judge_good(load, "beside crashes")
    share, scattered = good["crashing"] / good["alone"], good["scattered"] / good["alone"]
    rate, crashes = good["alone"] / (ROUNDS * WINDOW_S), ROUNDS * CRASHES_A_ROUND
    text = f"{share:.0%} of {rate:,.0f} good requests/s beside {crashes} that crash; 80 % are promised"
    soak.judge(share >= GOOD_SHARE, text)
    text = f"{scattered:.0%} beside {4 * 4 * ROUNDS} crashes that quarantine does not stop; 80 % are promised"
    soak.judge(scattered >= GOOD_SHARE, text)


def measure(soak: Soak, load: Load, crashes: list[str]) -> int:
    """Return how many good requests succeeded while these crashed, spread over the first four fifths of the time."""
    wait_until_s(soak, soak.elapsed_s + SETTLE_S)
    start, before = soak.elapsed_s, load.codes["ok"]
    with Session(soak.hostile.server, HOSTILE) as session:
        for number, name in enumerate(crashes):
            session.send((name, b"The Owl"))
            wait_until_s(soak, start + 0.8 * WINDOW_S * (number + 1) / len(crashes))
        wait_until_s(soak, start + WINDOW_S)
    return load.codes["ok"] - before


def reload_under_load(soak: Soak) -> None:
    """Send a SIGHUP every second while at least ten thousand requests are answered."""
    old = soak.hostile.worker_pids()
    sent = 0
    with soak.good() as load:
        while load.total < RELOAD_REQUESTS or sent < RELOADS:
            soak.reload()
            sent += 1
            wait_until_s(soak, soak.elapsed_s + 1)
        wait_until(lambda: not (soak.hostile.worker_pids() & old))
    soak.judge_good(load, f"with {sent} SIGHUPs, one a second")
    soak.judge(load.total >= RELOAD_REQUESTS, f"{load.total} requests; {RELOAD_REQUESTS} are required")


def stop(soak: Soak) -> None:
    """Stop the server, and look for processes that it leaves."""
    status = soak.hostile.server.stop()
    soak.judge(status == 0, f"exit status {status} after SIGTERM")
    left = 0 if within(GONE_S, lambda: not soak.hostile.processes()) else len(soak.hostile.processes())
    soak.judge(left == 0, f"{left} processes left")


if __name__ == "__main__":
    sys.exit(main())
