"""Runs the examples of transforms: what ``xformd check`` does for a plugin's author."""

from collections.abc import AsyncIterator

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from xformd import spec
from xformd.errors import InternalError, TransformFailed, XformError, one_line
from xformd.limits import Limits
from xformd.plugins.definition import Example, Transform
from xformd.plugins.registry import Entry, Plugin, Registry
from xformd.service import TransformService


@attrs.frozen
class Verdict:
    """What came of one transform's examples, or of a plugin that failed to load.

    Args:
        subject: the transform, or the plugin.
        examples: how many were run.
        failures: a line for each that gave something else.
    """

    subject: str
    examples: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


async def check(plugin: Plugin, clock: IReactorTime) -> AsyncIterator[Verdict]:
    """Run every example of every transform of a plugin, the way a request would.

    Args:
        plugin: whose transforms; each is run, also where another plugin has its name.
        clock: a reactor.

    Yields:
        A verdict for each transform, or one for a plugin that failed to load.
    """
    if plugin.state == "failed":
        yield Verdict(plugin.label, 0, (f"plugin {plugin.label}: {plugin.reason}",))
    own = Registry({transform.name: Entry(transform, plugin) for transform in plugin.transforms}, (plugin,))
    service = TransformService.inline(own, Limits(), clock)
    for transform in plugin.transforms:
        failures = [await _try(service, transform, example) for example in transform.examples]
        yield Verdict(transform.name, len(failures), tuple(filter(None, failures)))


async def _try(service: TransformService, transform: Transform, example: Example) -> str:
    """Say what is wrong with an example; nothing if it holds."""
    shown = ", ".join([repr(example.poem), *(f"{name}={value!r}" for name, value in example.options.items())])
    poem, wanted = (side.encode() if isinstance(side, str) else side for side in (example.poem, example.result))
    try:
        result = service.xform(spec.build(transform.name, example.options), poem)
        if isinstance(result, Deferred):
            result = await result
    except XformError as error:
        return f"{transform.name}({shown}): {explain(error)}"
    if result == wanted:
        return ""
    return f"{transform.name}({shown}) gave {transform.decode(result)!r}, not {example.result!r}"


def explain(error: XformError) -> str:
    """Say what went wrong to somebody who may see all of it: the one who runs the transform.

    Args:
        error: what the service raised in this process.

    Returns:
        One line; where the transform raised, with what it said and where.
    """
    line = f"{error.code}: {error.message}"
    if isinstance(error, InternalError):
        return f"{line}; --traceback shows what went wrong"
    if isinstance(error, TransformFailed) and error.detail:
        return one_line(f"{line}: {error.detail}")
    return line
