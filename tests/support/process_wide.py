"""What a plugin's code can change in its process: each change as source code, and what can be seen of all of them.

As a script, it makes each change in a child of its own, as an import or as a job would, and prints what is left of it.
"""

import asyncio
import atexit
import builtins
import codecs
import contextlib
import ctypes
import decimal
import faulthandler
import fcntl
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.logger import globalLogBeginner, globalLogPublisher

from xformd.plugins.process_state import ProcessState, isolated_import

CHANGES = {
    # Standard streams and their descriptors.
    "standard output in UTF-8": "import sys; sys.stdout.reconfigure(encoding='utf-16')",
    "errors of standard output": "import sys; sys.stderr.reconfigure(errors='strict', line_buffering=False)",
    "standard output replaced": "import io, sys; sys.stdout = sys.__stdout__ = io.StringIO()",
    "standard output wrapped": "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'latin-1')",
    "standard output detached": "import codecs, sys; sys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach())",
    "standard output closed": "import sys; sys.stdout.close()",
    "standard error closed": "import sys; sys.stderr.close()",
    "standard input closed": "import sys; sys.stdin.close()",
    "standard input wrapped": "import io, sys; sys.stdin = io.TextIOWrapper(sys.stdin.buffer, 'latin-1')",
    "streams taken away": "import sys; sys.stdin = sys.stdout = sys.stderr = None",
    "streams deleted": "import sys; del sys.stdout, sys.__stderr__",
    "descriptors closed": "import os; os.closerange(0, 3)",
    "descriptor 1 elsewhere": "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
    "descriptor 1 by a file object": "open(1, 'w').close()",
    "descriptor 2 does not block": "import os; os.set_blocking(2, False); os.set_blocking(1, False)",
    "descriptor 2 appends": "import fcntl, os; fcntl.fcntl(2, fcntl.F_SETFL, os.O_APPEND)",
    "descriptor 1 is not inherited": "import os; os.set_inheritable(1, False)",
    # Files and folders.
    "working directory": "import os; os.chdir('/')",
    "umask": "import os; os.umask(0)",
    "folder of temporary files": "import tempfile; tempfile.tempdir = '/nonexistent'",
    # The environment.
    "variable added": "import os; os.environ['HTTP_PROXY'] = 'http://127.0.0.1:1'",
    "variable removed": "import os; del os.environ['PATH']",
    "environment emptied": "import os; os.environ.clear()",
    "environment replaced": "import os; os.environ = dict(os.environ)",
    "time zone": "import os, time; os.environ['TZ'] = 'XYZ-7'; time.tzset()",
    "language": "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8' if "
    "locale.setlocale(locale.LC_ALL) == 'C' else 'C')",
    # Signals.
    "SIGPIPE": "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "SIGTERM ignored": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "SIGCHLD ignored": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SIGALRM handled": "import signal; signal.signal(signal.SIGALRM, print)",
    "SIGUSR1 handled by faulthandler": "import faulthandler, signal; faulthandler.register(signal.SIGUSR1)",
    "SIGINT ignored below Python": "import ctypes; ctypes.CDLL(None).signal(2, ctypes.c_void_p(1))",
    "SIGCHLD ignored below Python": "import ctypes; ctypes.CDLL(None).signal(17, ctypes.c_void_p(1))",
    "SIGPIPE below Python": "import ctypes; ctypes.CDLL(None).signal(13, None)",
    "signals blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})",
    "wake-up descriptor": "import os, signal; r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)",
    "alarm": "import signal; signal.alarm(3600)",
    "virtual timer": "import signal; signal.setitimer(signal.ITIMER_VIRTUAL, 3600)",
    "profiling timer": "import signal; signal.setitimer(signal.ITIMER_PROF, 3600, 3600)",
    "fault handler": "import faulthandler; faulthandler.disable() if faulthandler.is_enabled() else "
    "faulthandler.enable()",
    "dump later": "import faulthandler; faulthandler.dump_traceback_later(3600, exit=True)",
    # The interpreter.
    "uncaught exceptions": "import sys; sys.excepthook = print",
    "unraisable exceptions": "import sys; sys.unraisablehook = print",
    "exceptions of threads": "import threading; threading.excepthook = print",
    "display hook": "import sys; sys.displayhook = print",
    "break points": "import sys; sys.breakpointhook = print",
    "trace": "import sys; sys.settrace(lambda *_: None)",
    "profile": "import sys; sys.setprofile(lambda *_: None)",
    "trace of threads": "import threading; threading.settrace(lambda *_: None)",
    "profile of threads": "import threading; threading.setprofile(lambda *_: None)",
    "stack of threads": "import threading; threading.stack_size(65536)",
    "recursion": "import sys; sys.setrecursionlimit(100_000)",
    "switch interval": "import sys; sys.setswitchinterval(1)",
    "digits": "import sys; sys.set_int_max_str_digits(0)",
    "bytecode": "import sys; sys.dont_write_bytecode = not sys.dont_write_bytecode",
    "tracebacks": "import sys; sys.tracebacklimit = 0",
    "arguments": "import sys; sys.argv[:] = ['x']",
    "origin of coroutines": "import sys; sys.set_coroutine_origin_tracking_depth(9)",
    "asynchronous generators": "import sys; sys.set_asyncgen_hooks(firstiter=print, finalizer=print)",
    "dlopen flags": "import os, sys; sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)",
    "collector off": "import gc; gc.disable()",
    "collector thresholds": "import gc; gc.set_threshold(1, 1, 1)",
    "collector callbacks": "import gc; gc.callbacks.append(print)",
    "collector debugging": "import gc; gc.set_debug(gc.DEBUG_SAVEALL)",
    "path of modules emptied": "import sys; del sys.path[:]",
    "built-in replaced": "import builtins; builtins.print = builtins.open = str",
    "built-in deleted": "import builtins; del builtins.breakpoint",
    "error handler of codecs": "import codecs; codecs.register_error('strict', codecs.ignore_errors)",
    # The standard library.
    "default socket timeout": "import socket; socket.setdefaulttimeout(10)",
    "random numbers": "import random; random.seed(1)",
    "precision of decimals": "import decimal; decimal.getcontext().prec = 3",
    "traps of decimals": "import decimal; decimal.getcontext().traps[decimal.Inexact] = True",
    "another context of decimals": "import decimal; decimal.setcontext(decimal.Context(prec=5))",
    "warnings ignored": "import warnings; warnings.simplefilter('ignore')",
    "warnings shown": "import warnings; warnings.showwarning = print",
    "warnings formatted": "import warnings; warnings.formatwarning = str",
    "warnings logged": "import logging; logging.captureWarnings(True)",
    "logging configured": "import logging; logging.basicConfig(level=logging.DEBUG)",
    "logging off": "import logging; logging.disable()",
    "logger class": "import logging; logging.setLoggerClass(type('L', (logging.Logger,), {}))",
    "log records": "import logging; logging.setLogRecordFactory(print)",
    "other loggers off": "import logging.config; logging.config.dictConfig({'version': 1})",
    "level of another's logger": "import logging; logging.getLogger('asyncio').setLevel(1)",
    "Twisted's log": "import sys; from twisted.python import log; log.startLogging(sys.stdout)",
    # What the kernel keeps for a process.
    "niceness": "import os; os.nice(5)",
    "affinity": "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "scheduling policy": "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "open files": "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(r.RLIMIT_NOFILE)[1]))",
    "CPU time": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (9999, r.getrlimit(r.RLIMIT_CPU)[1]))",
    "file size": "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (9999, r.getrlimit(r.RLIMIT_FSIZE)[1]))",
    "stack": "import resource as r; r.setrlimit(r.RLIMIT_STACK, (2**20, r.getrlimit(r.RLIMIT_STACK)[1]))",
    "address space": "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**40, r.getrlimit(r.RLIMIT_AS)[1]))",
    "process group": "import os; os.setpgid(0, 0)",
    # What cannot be put back.
    "session": "import os; os.setsid()",
    "thread": "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "child": "import subprocess; subprocess.Popen(['sleep', '1'])",
    # What plugins need later, or what is nobody else's.
    "path of modules": "import sys; sys.path.append('/nonexistent')",
    "new built-in": "import builtins; builtins._ = str",
    "exit handler": "import atexit; atexit.register(int)",
    "event loop policy": "import asyncio as a; a.set_event_loop_policy(type('P', (a.DefaultEventLoopPolicy,), {})())",
    "module patched": "import socket; socket.getaddrinfo = print",
    "start method": "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)",
}

KEPT = {"path of modules", "new built-in", "exit handler", "event loop policy", "module patched", "start method"}
"""What plugins need later."""

REPORTED = {
    "session": "changed what cannot be put back: process group, session",
    "thread": "left a thread running",
    "child": "left a process running",
}
"""What cannot be put back, and what is said about it."""


def _status(*names: str) -> list[str]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [fields[name].strip()[-8:] for name in names]  # of signals without those that the C library uses


def _descriptor(number: int) -> Any:
    try:
        return (
            str(Path(f"/proc/self/fd/{number}").readlink()),
            fcntl.fcntl(number, fcntl.F_GETFL),
            os.get_inheritable(number),
        )
    except OSError as error:
        return repr(error)


def _stream(name: str) -> Any:
    stream: Any = getattr(sys, name, "deleted")
    try:
        is_writable = name == "stdin" or stream.write("") == 0
        return (
            type(stream).__name__,
            stream.encoding,
            stream.errors,
            stream.line_buffering,
            stream.fileno(),
            is_writable,
        )
    except (AttributeError, ValueError, OSError) as error:
        return repr(error)


def _environment() -> Any:
    code = ctypes.CDLL(None)
    code.getenv.restype = ctypes.c_char_p
    values = {
        name: (value, (code.getenv(name.encode()) or b"?").decode()) for name, value in sorted(os.environ.items())
    }
    return type(os.environ).__name__, values, code.getenv(b"UNSEEN")


OBSERVATIONS: dict[str, Callable[[], Any]] = {
    "descriptors": lambda: [_descriptor(number) for number in range(3)],
    "streams": lambda: [
        _stream(name) for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
    ],
    "folder": os.getcwd,
    "temporary": lambda: tempfile.tempdir,
    "environment": _environment,
    "zone": lambda: (time.tzname, time.localtime(0).tm_hour),
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "status": lambda: _status("Umask", "SigBlk", "SigIgn", "SigCgt", "Threads", "Cpus_allowed", "Name"),
    "handlers": lambda: [str(signal.getsignal(number)) for number in range(1, 32)],
    "timers": lambda: [signal.getitimer(number)[1] or signal.getitimer(number)[0] > 0 for number in range(3)],
    "faults": faulthandler.is_enabled,
    "hooks": lambda: [
        *map(str, (sys.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook, threading.excepthook)),
        *map(str, (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile())),
        str(sys.get_asyncgen_hooks()),
    ],
    "interpreter": lambda: [
        *(sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(), sys.dont_write_bytecode),
        *(getattr(sys, "tracebacklimit", None), sys.argv, sys.get_coroutine_origin_tracking_depth()),
        *(sys.getdlopenflags(), threading.stack_size()),
    ],
    "path": lambda: sys.path,
    "collector": lambda: (gc.isenabled(), gc.get_threshold(), str(gc.callbacks), gc.get_debug()),
    "built-ins": lambda: {
        name: str(value) for name, value in sorted(vars(sys.modules["builtins"]).items()) if name != "_"
    },
    "codecs": lambda: [str(codecs.lookup_error(name)) for name in ("strict", "replace", "surrogateescape")],
    "socket": lambda: (socket.getdefaulttimeout(), str(socket.getaddrinfo)),
    "random": lambda: hash(random.getstate()),
    "decimals": lambda: str(decimal.getcontext()),
    "warnings": lambda: [str(warnings.filters), str(warnings.showwarning), str(warnings.formatwarning)],
    "logging": lambda: [
        *map(str, (logging.root.level, logging.root.handlers, logging.root.manager.disable)),
        *map(str, (logging.getLoggerClass(), logging.getLogRecordFactory())),
        *(
            (name, logger.level, logger.disabled)
            for name in ("asyncio", "other")
            for logger in [logging.getLogger(name)]
        ),
    ],
    "Twisted's log": lambda: len(globalLogPublisher._observers),
    "scheduling": lambda: (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)),
    "limits": lambda: [resource.getrlimit(number) for number in range(16)],
    "group": lambda: (os.getpgid(0), os.getsid(0)),
    "new": lambda: hasattr(builtins, "_"),
    "exit": atexit._ncallbacks,
    "wakeups": lambda: signal.set_wakeup_fd(-1),
    "start": lambda: multiprocessing.get_start_method(allow_none=True),
    "loops": lambda: str(type(asyncio.get_event_loop_policy())),
}


def observe() -> dict[str, str]:
    """Return all that can be seen."""
    return {name: str(look()) for name, look in OBSERVATIONS.items()}


def differences(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def _settled(before: dict[str, str], change: str) -> dict[str, tuple[str, str]]:
    """Return what differs for good: the system counts a thread until a while after it has been waited for."""
    ends_at = time.monotonic() + (0 if change in REPORTED else 10)
    while "status" in (found := differences(before, observe())) and time.monotonic() < ends_at:
        time.sleep(0.01)
    return found


def left_of(change: str, isolation: str) -> dict[str, Any]:
    """Make a change in a child, isolated; return what is seen of it meanwhile and afterwards, and what is reported."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        result: dict[str, Any] = {"reports": []}
        try:
            before = observe()
            with ISOLATIONS[isolation](result["reports"]):
                exec(CHANGES[change], {})
                result["meanwhile"] = differences(before, observe())
            result["left"] = _settled(before, change)
        except BaseException as error:
            result["raised"] = repr(error)
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        seen: dict[str, Any] = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return seen


@contextlib.contextmanager
def _as_job(reports: list[str]) -> Iterator[None]:
    state = ProcessState(for_jobs=True)
    yield
    reports.extend(state.restore())


ISOLATIONS: dict[str, Callable[[list[str]], contextlib.AbstractContextManager[object]]] = {
    "import": lambda reports: isolated_import(reports.append),
    "job": _as_job,
}

if __name__ == "__main__":
    logging.getLogger("other")
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    Path(sys.argv[2]).write_text(json.dumps({change: left_of(change, sys.argv[1]) for change in CHANGES}))
