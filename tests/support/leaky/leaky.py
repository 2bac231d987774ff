"""Transforms that fail in every way, each with its poem in the error."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail

import xformd


def both(function: Callable[[str], object], name: str = "") -> list[xformd.Transform]:
    """Make two of it: one that runs in a worker, and one that runs in the server."""

    def transform(poem: str) -> str:
        return function(poem)  # type: ignore[return-value]

    name = name or function.__name__.replace("_", "-")
    return [xformd.transform(name=name)(transform), xformd.transform(name=f"{name}-here", inline=True)(transform)]


def fails_with(error: type[BaseException]) -> Callable[[str], None]:
    def function(poem: str) -> None:
        raise error(f"bad poem: {poem}")

    return function


ERRORS: dict[str, type[BaseException]] = {
    "raises": ValueError,
    "refuses": xformd.GibberishError,
    "blames-an-option": xformd.BadOptions,
    "finds-it-long": xformd.TooLarge,
    "gives-up": xformd.TransformFailed,
    "exits": SystemExit,
}


def raises_after_another(poem: str) -> None:
    try:
        int(poem)
    except ValueError as error:
        raise KeyError(poem) from error


def runs_it(poem: str) -> None:
    exec(f"def {poem}():\n    raise ValueError({poem!r})\n{poem}()", {})


def compiles_it(poem: str) -> None:
    compile(f"{poem} {poem}", f"<{poem}>", "exec")


def opens_it(poem: str) -> str:
    return Path(poem).read_text()


def returns_it_wrapped(poem: str) -> list[str]:
    return [poem]


def leaves_a_thread(poem: str) -> str:
    thread = threading.Thread(target=fails_with(ValueError), args=(poem,))
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


@xformd.transform(inline=True)
async def waits(poem: str) -> str:
    raise ValueError(poem)


@xformd.transform(inline=True)
async def leaves_a_deferred(poem: str) -> str:
    fail(ValueError(poem))
    return "left"


@xformd.transform(inline=True)
async def leaves_a_call(poem: str) -> str:
    from twisted.internet import reactor

    done: Deferred[str] = Deferred()
    reactor.callLater(0, fails_with(ValueError), poem)
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
    """Leave a callback that fails, which asyncio logs."""
    loop = asyncio.new_event_loop()
    loop.call_soon(fails_with(ValueError), poem)
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
    functions: list[Callable[[str], Any]] = [raises_after_another, runs_it, compiles_it, opens_it]
    functions += [returns_it_wrapped, leaves_a_thread, leaves_something_careless]
    alone = [waits, leaves_a_deferred, leaves_a_call, cannot_be_cancelled, blocks, leaves_a_handle, logs_a_failure]
    alone += [prints, prints_elsewhere, xformd.transform(dies), xformd.transform(takes_long)]
    failing = [made for name, error in ERRORS.items() for made in both(fails_with(error), name)]
    return failing + [made for function in functions for made in both(function)] + alone
