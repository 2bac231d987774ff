"""Transforms that fail in every way, and say each time what they were given."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred, fail

import xformd


def both(function: Callable[[str], str]) -> list[xformd.Transform]:
    """Make two of it: one that runs in a worker, and one that runs in the server."""
    name = function.__name__.replace("_", "-")
    return [xformd.transform(name=name)(function), xformd.transform(name=f"{name}-here", inline=True)(function)]


def raises(poem: str) -> str:
    raise ValueError(f"bad poem: {poem}")


def raises_after_another(poem: str) -> str:
    try:
        int(poem)
    except ValueError as error:
        raise KeyError(poem) from error
    return poem


def runs_it(poem: str) -> str:
    exec(f"def {poem}():\n    raise ValueError({poem!r})\n{poem}()", {})
    return poem


def compiles_it(poem: str) -> str:
    compile(f"{poem} {poem}", f"<{poem}>", "exec")
    return poem


def opens_it(poem: str) -> str:
    return Path(poem).read_text()


def refuses(poem: str) -> str:
    raise xformd.GibberishError(f"what is {poem}?")


def blames_an_option(poem: str) -> str:
    raise xformd.BadOptions(f"no option goes with {poem}")


def finds_it_long(poem: str) -> str:
    raise xformd.TooLarge(f"{poem} is too long")


def gives_up(poem: str) -> str:
    raise xformd.TransformFailed(f"{poem} is too hard")


def exits(poem: str) -> str:
    raise SystemExit(poem)


def returns_it_wrapped(poem: str) -> str:
    return [poem]  # type: ignore[return-value]


def leaves_a_thread(poem: str) -> str:
    thread = threading.Thread(target=raises, args=(poem,))
    thread.start()
    thread.join()
    return "left"


class Careless:
    def __init__(self, poem: str) -> None:
        self.poem = poem

    def __del__(self) -> None:
        raise ValueError(self.poem)


def leaves_something_careless(poem: str) -> str:
    Careless(poem)
    return "left"


def dies(poem: str) -> str:
    os._exit(3)


def takes_long(poem: str) -> str:
    time.sleep(60)
    return poem


@xformd.transform
async def waits(poem: str) -> str:
    raise ValueError(poem)


@xformd.transform
async def leaves_a_deferred(poem: str) -> str:
    fail(ValueError(poem))
    return "left"


@xformd.transform
async def leaves_a_call(poem: str) -> str:
    from twisted.internet import reactor

    done: Deferred[str] = Deferred()
    reactor.callLater(0, raises, poem)
    reactor.callLater(0.01, done.callback, "left")
    return await done


@xformd.transform
def cannot_be_cancelled(poem: str) -> Deferred[str]:
    def cancel(_: object) -> None:
        raise ValueError(poem)

    return Deferred(cancel)


@xformd.transform(inline=True)
def blocks(poem: str) -> str:
    time.sleep(0.1)
    return "done"


@xformd.transform(inline=True)
def leaves_a_handle(poem: str) -> str:
    """What asyncio says of a callback that fails."""
    loop = asyncio.new_event_loop()
    loop.call_soon(raises, poem)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    return "left"


@xformd.transform(inline=True)
def logs_a_failure(poem: str) -> str:
    try:
        raise ValueError(poem)
    except ValueError:
        logging.getLogger("leaky").exception("it failed")
    return "logged"


@xformd.transform(inline=True)
def prints(poem: str) -> str:
    print("printed\nby \x1b[2J leaky")
    return "printed"


@xformd.transform
def prints_elsewhere(poem: str) -> str:
    print("printed\nin a \x1b[2J worker")
    return "printed"


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Give them all."""
    functions = [raises, raises_after_another, runs_it, compiles_it, opens_it, refuses, blames_an_option]
    functions += [finds_it_long, gives_up, exits, returns_it_wrapped, leaves_a_thread, leaves_something_careless]
    alone = [waits, leaves_a_deferred, leaves_a_call, cannot_be_cancelled, blocks, leaves_a_handle, logs_a_failure]
    alone += [prints, prints_elsewhere, xformd.transform(dies), xformd.transform(takes_long)]
    return [made for function in functions for made in both(function)] + alone
