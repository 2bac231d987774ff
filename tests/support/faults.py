"""The hostile transforms: how each one's request is answered."""

import attrs

FAILED = ("transform-failed",)
DIED = ("transform-died",)
TIMEOUT = ("timeout",)


@attrs.frozen
class HostileCase:
    """One hostile transform and the answer that its request gets.

    Args:
        name: of the transform.
        code: of the answer; one of these.
        says: a part of the message.
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
    HostileCase("raises", FAILED, "ValueError"),
    HostileCase("wrong-type", FAILED, "int"),
    HostileCase("unpicklable", FAILED, "Clingy"),
    HostileCase("system-exit", FAILED, "SystemExit"),
    HostileCase("keyboard-interrupt", FAILED, "KeyboardInterrupt"),
    HostileCase("huge", ("too-large",), "10485760"),
    HostileCase("sleep", TIMEOUT, options={"seconds": "30"}),
    HostileCase("loop-python", TIMEOUT),
    HostileCase("loop-c", TIMEOUT),
    HostileCase("deaf", TIMEOUT),
    HostileCase("own-session", TIMEOUT),
    HostileCase("exit-0", DIED),
    HostileCase("exit-1", DIED),
    HostileCase("segfault", DIED),
    HostileCase("memory-bomb", DIED, "memory"),
    HostileCase("close-descriptors", DIED),
    HostileCase("half-reply", DIED),
    HostileCase("fork", DIED, options=CRASH),
    HostileCase("setsid", DIED, options=CRASH),
    HostileCase("daemonise", DIED, options=CRASH),
    HostileCase("fork-2", TIMEOUT, options=HANG),
    HostileCase("setsid-2", TIMEOUT, options=HANG),
    HostileCase("daemonise-2", TIMEOUT, options=HANG),
    HostileCase("never", TIMEOUT),
)

MEDDLERS = ("prints", "reads-stdin", "chdir", "umask", "set-locale", "signals", "thread")
