"""The work with a process for each poem: one ``xformd send``, from start to end."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs

from benchmarks import servers, traffic
from benchmarks.answers import WrongAnswer
from benchmarks.plan import Plan, interleave
from benchmarks.samples import Column, Figures, Result, Row

IMPORT_REACTOR = "import twisted.internet.reactor"
SEND = "xformd send"
PASS = "pass"
_ROUNDS_IN_ONE = 3  # one takes a fraction of a second
_MILLISECONDS = 1e3
_PATIENCE = ("--timeout", "20")
_REFERENCES = {name: (sys.executable, "-c", name) for name in (IMPORT_REACTOR, PASS)}


@attrs.frozen
class Commands:
    """Times commands. ``python -c pass`` shows what none of them can be faster than."""

    key: str
    title: str
    size: int
    columns: tuple[Column, ...] = (
        Column("wall_ms", "wall ms", has_range=True),
        Column("cpu_ms", "CPU ms", has_range=True),
    )

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        ours = plan.rows([servers.OURS])
        rows = {name: Row(name) for name in (SEND, IMPORT_REACTOR, PASS)}
        with plan.running(ours) as started, tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            measures = {name: _timing(command, b"", plan, here) for name, command in _REFERENCES.items()}
            poem = traffic.poems(self.size, 1)[0]
            file = here / "poem.txt"
            file.write_bytes(poem)
            for server in started:
                address = "{}:{}".format(*server.address)
                send = (*_xformd(), "send", traffic.TRANSFORM, str(file), "--server", address, *_PATIENCE)
                measures[SEND] = _timing(send, traffic.cummingsify(poem), plan, here)
            for name in measures:
                measures[name]()  # so that what is compiled, and what is in the page cache, is there for all
            interleave(rows, measures, _ROUNDS_IN_ONE * plan.rounds)
        rows[SEND].error = rows[SEND].error or ours[servers.OURS].error
        return Result(self.key, self.title, self.columns, rows)


def _xformd() -> tuple[str, ...]:
    """Return the command as a user has it; a fresh clone may not be installed."""
    script = shutil.which("xformd", path=str(Path(sys.executable).parent))
    return (script,) if script else (sys.executable, "-m", "xformd")


def _timing(command: tuple[str, ...], expected: bytes, plan: Plan, compiled: Path) -> Callable[[], Figures]:
    def measure() -> Figures:
        ended = servers.run_to_end(command, plan.generator_cpu, compiled)
        if ended.output != expected:
            raise WrongAnswer(f"{' '.join(command)} printed {ended.output[:200]!r}")
        return {"wall_ms": _MILLISECONDS * ended.wall_s, "cpu_ms": _MILLISECONDS * ended.cpu_s}

    return measure
