"""The examples of transforms as tests: what ``xformd check`` runs, and a reload before it switches to new workers."""

from collections.abc import AsyncIterator, Callable

from twisted.internet.defer import Deferred

from xformd import spec
from xformd.errors import Busy, XformError
from xformd.plugins.definition import Example, Transform
from xformd.service import TransformService


async def failing_examples(
    service: TransformService,
    transform: Transform,
    describe: Callable[[XformError], str],
    before: TransformService | None = None,
) -> AsyncIterator[str]:
    """Run the examples of a transform as requests, one after the other.

    Args:
        service: what runs them.
        transform: whose examples.
        describe: puts an error into words.
        before: what ran it until now; an example that it had there already, and that fails there too, is no failure.

    Yields:
        A line for each example that fails.
    """
    for example in transform.examples:
        wanted = example.encoded[1]
        result = await _run(service, transform, example)
        if result == wanted:
            continue
        had = None if before is None else before.registry.entries.get(transform.name)
        if before is not None and had is not None and example in had.transform.examples:
            earlier = await _run(before, transform, example)
            if earlier != wanted and not isinstance(earlier, Busy):
                continue
        call = ", ".join([repr(example.poem), *(f"{name}={value!r}" for name, value in example.options.items())])
        if isinstance(result, XformError):
            yield f"{transform.name}({call}): {describe(result)}"
        else:
            shown = result.decode() if transform.result_kind == "text" else result
            yield f"{transform.name}({call}) gave {shown!r}, not {example.result!r}"


async def _run(service: TransformService, transform: Transform, example: Example) -> bytes | XformError:
    try:
        result = service.xform(spec.build(transform.name, example.options), example.encoded[0])
        return await result if isinstance(result, Deferred) else result
    except XformError as error:
        return error
