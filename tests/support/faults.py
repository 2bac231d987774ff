"""What each hostile transform does to its own request, and which of them do nothing to it."""

import attrs

FAILED = ("transform-failed",)
DIED = ("transform-died",)
TIMEOUT = ("timeout",)


@attrs.frozen
class Fault:
    """What a hostile transform does to its request.

    Args:
        name: of the transform.
        code: what its request is answered with.
        says: a word of the message.
        options: of the transform.
    """

    name: str
    code: tuple[str, ...]
    says: str = ""
    options: dict[str, str] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *self.options.values()])


CRASH, HANG = {"then": "crash"}, {"then": "hang"}

FAULTS = (
    Fault("raises", FAILED, "ValueError"),
    Fault("wrong-type", FAILED, "int"),
    Fault("unpicklable", FAILED, "Clingy"),
    Fault("system-exit", FAILED, "SystemExit"),
    Fault("keyboard-interrupt", FAILED, "KeyboardInterrupt"),
    Fault("huge", ("too-large",), "10485760"),
    Fault("sleep", TIMEOUT, options={"seconds": "30"}),
    Fault("loop-python", TIMEOUT),
    Fault("loop-c", TIMEOUT),
    Fault("deaf", TIMEOUT),
    Fault("own-session", TIMEOUT),
    Fault("exit-0", DIED),
    Fault("exit-1", DIED),
    Fault("segfault", DIED),
    Fault("memory-bomb", DIED, "memory"),
    Fault("close-descriptors", DIED),
    Fault("half-reply", DIED),
    Fault("fork", DIED, options=CRASH),
    Fault("setsid", DIED, options=CRASH),
    Fault("daemonise", DIED, options=CRASH),
    Fault("fork-2", TIMEOUT, options=HANG),
    Fault("setsid-2", TIMEOUT, options=HANG),
    Fault("daemonise-2", TIMEOUT, options=HANG),
    Fault("never", TIMEOUT),
)

MEDDLERS = ("prints", "reads-stdin", "chdir", "umask", "set-locale", "signals", "thread")
