"""The built-in transforms."""

from collections.abc import Callable, Mapping
from typing import Any

import xformd


def built_in(*examples: Any, at_least: float = 0, **settings: Any) -> Callable[[Callable[..., Any]], xformd.Transform]:
    """Make a deterministic transform; its result is at least this many times as long as the poem."""
    if at_least:
        settings["result_bytes"] = lambda poem_bytes, **_: int(at_least * poem_bytes)
    return xformd.transform(examples=examples, deterministic=True, **settings)


def provide_all(module: Mapping[str, Any]) -> Callable[[], list[xformd.Transform]]:
    """Return the hook of a module that provides every transform in it."""
    return xformd.hookimpl(lambda: [each for each in module.values() if isinstance(each, xformd.Transform)])
