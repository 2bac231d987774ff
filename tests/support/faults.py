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


LEAVERS = ("fork", "setsid", "daemonise")
FAULTS = (
    HostileCase("raises", FAILED, "ValueError"),
    HostileCase("wrong-type", FAILED, "int"),
    HostileCase("unpicklable", FAILED, "Clingy"),
    HostileCase("system-exit", FAILED, "SystemExit"),
    HostileCase("keyboard-interrupt", FAILED, "KeyboardInterrupt"),
    HostileCase("huge", ("too-large",), "10485760"),
    HostileCase("sleep", TIMEOUT, options={"seconds": "30"}),
    HostileCase("memory-bomb", DIED, "memory"),
    *(HostileCase(name, TIMEOUT) for name in ("loop-python", "loop-c", "deaf", "own-session", "never")),
    *(HostileCase(name, DIED) for name in ("exit-0", "exit-1", "segfault", "close-descriptors", "half-reply")),
    *(HostileCase(name, DIED, options={"then": "crash"}) for name in LEAVERS),
    *(HostileCase(f"{name}-2", TIMEOUT, options={"then": "hang"}) for name in LEAVERS),
)

MEDDLERS = ("prints", "reads-stdin", "chdir", "umask", "set-locale", "signals", "thread")
