"""The server's end of a fork server: starts it, follows how it loads the plugins, and has it fork workers.

Invariant: a plugin that ends its fork server, or that takes longer than it may, is left out of the next one, with the
reason; nothing else keeps a plugin out.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.config.resources import resident_bytes
from xformd.errors import BadFrame, one_line
from xformd.net.deadline import cancel
from xformd.net.transport import Channel
from xformd.plugins.registry import LOADING, WARMING_UP, Plugin, PluginKey
from xformd.plugins.settings import VARIABLE
from xformd.runners import messages, reaper
from xformd.runners.worker_handle import END_GRACE_S, OutputLog, WorkerHandle, describe_exit, socket_pair
from xformd.wire import netstring

if TYPE_CHECKING:
    from xformd.runners.supervisor import Supervisor

SLOW_AFTER_S = 1.0  # a plugin that takes longer to be loaded, or to warm up, is named: somebody waits for it

_COMMAND = (
    "import sys; path = {path!r}; sys.path[:] = path + [entry for entry in sys.path if entry not in path]; "
    "from xformd.runners.reaper import main; main()"
)
"""Workers can import what the server can, and what has been installed since it started."""


@attrs.define(eq=False, slots=False)
class Launcher(ProcessProtocol):
    """Starts workers, by a fork server that it starts first.

    ``on_slow`` is called with a plugin that takes longer than ``SLOW_AFTER_S``, the reason saying for what, and with
    what is left out already. ``events`` is the supervisor, which sets itself.
    """

    log = Logger()

    setup: messages.WorkerSetup  # for the fork server and its workers
    _load_timeout_s: float  # how long a plugin may take to be loaded
    plugins: Mapping[PluginKey, Plugin]  # those that were found, for their names in messages
    _on_slow: Callable[[Plugin, messages.LeftOut], object]
    _reactor: Any
    events: "Supervisor" = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._is_local = self.setup.shows_errors
        self._process: IProcessTransport | None = None
        self._control: Channel | None = None
        self._decoder = netstring.Decoder(messages.MAX_SETUP_BYTES)
        self._loading: PluginKey | None = None
        self._did = "imported"  # or "warmed up"
        self._slow: set[tuple[PluginKey, str]] = set()  # what has been reported
        self.timeouts_s: dict[PluginKey, float] = {}  # how long plugins have asked for, by ``set_load_timeout``
        self._why_killed = ""
        self._is_told = self._is_loaded = False  # what to load; that it has
        self._timers: list[IDelayedCall] = []
        self._is_stopping = False
        self._warnings: set[str] = set()
        self._stopped: list[Deferred[None]] = []
        self._pid: int | None = None  # the fork server's own, not its reaper's

    def prepare(self) -> None:
        """Start the fork server: it imports xformd, and waits until there is something to ``launch``."""
        self._why_killed, self._is_told = "", False
        self._decoder = netstring.Decoder(messages.MAX_SETUP_BYTES)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            control, their_control = socket_pair(theirs, undo)
            self._output = OutputLog(self._name, self._reactor, is_passed_on=self._is_local)
            output = self._output.open(theirs, undo)
            self._process = self._reactor.spawnProcess(
                self,
                sys.executable,
                [sys.executable, "-P", "-c", _COMMAND.format(path=sys.path)],
                # Plugins' settings are in the setup: what a job starts need not see them.
                env={name: value for name, value in os.environ.items() if not VARIABLE.match(name)},
                childFDs={reaper.LIFELINE: "w", 1: output, 2: output, reaper.CONTROL: their_control.fileno()},
            )
            if self._why_killed:
                self._process = None
                raise ChildProcessError(f"the fork server {self._why_killed}")
            self._control = Channel(control, self._receive, lambda: None, self._reactor)  # the process's end says why
            undo.callback(self._control.close)
            undo.pop_all()

    def launch(self) -> WorkerHandle | None:
        """Start a worker; None while the plugins are being loaded: ``events.can_launch`` is called then.

        Raises ``OSError`` if the system has no more processes or descriptors to give.
        """
        if self._process is None and not self._is_stopping:
            self.prepare()
        if self._control is not None and not self._is_told:
            self._is_told = True
            self._control.send(messages.encode_setup(self.setup))
        if not self._is_loaded or self._control is None:
            return None
        return WorkerHandle(
            self._control.send_descriptors,
            self.setup.max_result_bytes,
            self.events,
            self._reactor,
            logs_output=not self._is_local,
        )

    def resident_bytes(self) -> int:
        """Return how much memory the fork server uses, in bytes; 0 if the system does not say, or there is none."""
        return resident_bytes(self._pid) if self._is_loaded and self._pid is not None else 0

    def leave_out(self, key: PluginKey, reason: str) -> None:
        """Start again without a plugin, which has failed; the workers end."""
        self.log.error("plugin {plugin} {reason}: it is left out", plugin=self._plugin(key).label, reason=reason)
        left_out = {**self.setup.left_out, key: ("failed", reason)}
        late, late_warm_up = self.setup.late - {key}, self.setup.late_warm_up - {key}
        self.setup = attrs.evolve(self.setup, left_out=left_out, late=late, late_warm_up=late_warm_up)
        self.end("a plugin is left out")

    def end(self, why: str) -> None:
        """Kill it, and every process that came from it. The plugins are loaded anew, unless it is stopping."""
        self._why_killed = self._why_killed or why
        self._is_loaded = False  # it may live on for a moment, and must not be asked for workers
        if self._process is not None:
            self._process.closeStdin()

    def stop(self) -> Deferred[None]:
        """End the fork server, in order if it heeds that; fires when it and all that came from it have ended."""
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self._is_stopping = True
        self._cancel_timers()
        if self._process is None:
            self._has_stopped()
        elif self._is_loaded and self._control is not None:
            self._control.finish()
            self._timers.append(self._reactor.callLater(END_GRACE_S, self.end, "the server is stopping"))
        else:
            self.end("the server is stopping")
        return stopped

    def _has_stopped(self) -> None:
        while self._stopped:
            self._stopped.pop().callback(None)

    # What it says.

    def _receive(self, data: bytes) -> None:
        try:
            for string in self._decoder.decode(data):
                self._heed(messages.decode_news(string) or {})
        except (BadFrame, ValueError) as error:
            self.end(f"sent an invalid message: {one_line(str(error))}")

    def _heed(self, news: Mapping[str, Any]) -> None:
        match news:
            case {"loading": [distribution, name]} | {"warming_up": [distribution, name]}:
                self._loading, self._did = (distribution, name), "warmed up" if "warming_up" in news else "imported"
                self._start_timers(self._loading)
            case {"timeout_s": int() | float() as seconds} if self._loading is not None:
                self.timeouts_s[self._loading] = seconds
                self._start_timers(self._loading)
            case {"warning": text} if text not in self._warnings:  # each fork server says it again
                self._warnings.add(text)
                self.log.warn("{text}", text=text)
            case {"late": keys}:
                self._leave_to_workers(frozenset((distribution, name) for distribution, name in keys))
            case {"loaded": True, "pid": pid}:
                self._loading = None
                self._pid = pid
                self._cancel_timers()
                self._is_loaded = True
                self.events.can_launch()

    def _leave_to_workers(self, keys: frozenset[PluginKey]) -> None:
        self._loading = None
        self._cancel_timers()
        self._why_killed = "is started again"  # it ends by itself, in order
        self._timers.append(self._reactor.callLater(END_GRACE_S, self.end, "its exit handlers take too long"))
        field = "late" if self._did == "imported" else "late_warm_up"
        self.setup = attrs.evolve(self.setup, **{field: getattr(self.setup, field) | keys})
        for key in sorted(keys):
            message = "plugin {plugin} leaves threads running when it is {did}: that is done in each worker"
            self.log.info(message, plugin=self._plugin(key).label, did=self._did)

    def _start_timers(self, key: PluginKey) -> None:
        self._cancel_timers()
        timeout_s = self.timeouts_s.get(key, self._load_timeout_s)
        self._timers = [
            self._reactor.callLater(min(SLOW_AFTER_S, timeout_s / 2), self.is_slow, key, self._did),
            self._reactor.callLater(timeout_s, self.end, f"was not {self._did} within {timeout_s:g} s"),
        ]

    def _cancel_timers(self) -> None:
        cancel(*self._timers)
        self._timers = []

    def is_slow(self, key: PluginKey, did: str) -> None:
        """Report a plugin that takes long to be ``imported`` or ``warmed up``, here or in a worker, once."""
        if (key, did) not in self._slow:
            self._slow.add((key, did))
            reason = LOADING if did == "imported" else WARMING_UP
            self._on_slow(attrs.evolve(self._plugin(key), reason=reason), self.setup.left_out)

    def _plugin(self, key: PluginKey) -> Plugin:
        distribution, name = key  # it may have been installed since the others were found
        return self.plugins.get(key) or Plugin(name=name, distribution=distribution, source="")

    def _name(self) -> str:
        return "fork server" if self._loading is None else f"plugin {self._plugin(self._loading).label}"

    # Its end.

    def processExited(self, reason: Failure) -> None:
        """Start again without the plugin that was being loaded. ``processEnded`` may come much later."""
        end: Any = reason.value
        ended = describe_exit(end.exitCode if end.signal is None else -end.signal)
        if self._process is None:  # it is still being spawned
            self._why_killed = ended
            return
        if self._control is not None:
            self._control.read_rest()
            self._control.close()
            self._output.read_rest()
        self._cancel_timers()
        was_loaded, self._is_loaded = self._is_loaded, False
        self._process = self._control = None
        if self._is_stopping:
            self._has_stopped()
        elif not self._is_told:
            pass  # the next launch tries again
        elif self._loading is not None:
            key, self._loading = self._loading, None
            self.leave_out(key, self._why_killed or f"{ended} when it was {self._did}")
            self.events.can_launch()
        elif self._why_killed:
            self.events.can_launch()
        else:
            what = "the fork server" if was_loaded else "the fork server, before it was ready,"
            self.events.cannot_launch(f"{what} {ended}")
