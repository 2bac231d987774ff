"""The jobs of one transform on asyncio in a worker, many at a time. The server names those that it cancels.

They share more than the jobs of other workers do: the process, its memory and the limit on it, and a working directory
that is empty at first. Each has its own context variables and, if it takes or returns files, its own folder. Whatever
they change in the process is put back, and the processes that they have started end, whenever no job runs. Invariant:
when the worker ends, its reaper knows whose code ran at that moment, and for how long it had held the event loop.
"""

import asyncio
import math
import os
import shutil
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from xformd.errors import Cancelled, TransformDied, TransformFailed, XformError
from xformd.plugins.job import ends_in
from xformd.plugins.process_state import ProcessState
from xformd.runners import calls, messages, reaper, worker
from xformd.runners.calls import Call
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

if TYPE_CHECKING:
    from xformd.runners.worker import _JobRunner

_request_id: ContextVar[int] = ContextVar("request_id", default=0)


def serve(runner: "_JobRunner", request: session.Request) -> NoReturn:
    """Run a request and all that follow, until the channel raises that the server has closed its half."""
    with asyncio.Runner() as asyncio_runner:
        asyncio_runner.run(_Jobs(runner).serve(request))
    raise AssertionError("nothing but an exception ends it")


class _Jobs:
    def __init__(self, runner: "_JobRunner") -> None:
        self._runner = runner
        self._tasks: dict[int, asyncio.Task[bytes]] = {}
        self._is_in_folder = False

    async def serve(self, first: session.Request) -> None:
        """Run jobs until the server is gone."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_make_task)
        loop.set_exception_handler(_report)
        worker.limit_memory(worker.data_bytes() + self._runner.setup.memory_bytes)
        self._state = ProcessState(for_jobs=True)  # with what belongs to the loop
        self._end = loop.create_future()
        self._begin(first)
        self._read()
        loop.add_reader(self._runner.channel.fileno(), self._read)
        await self._end

    def _read(self) -> None:
        try:
            for string in self._runner.channel.receive_all():
                if (note := messages.decode_note(string)) is None:
                    self._begin(worker.decode(string))
                elif (task := self._tasks.get(note[1])) is not None:
                    task.cancel()
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        asyncio.get_running_loop().remove_reader(self._runner.channel.fileno())
        if not self._end.done():
            self._end.set_exception(error)

    def _begin(self, request: session.Request) -> None:
        _request_id.set(request.id)  # for the task, which copies this context
        self._tasks[request.id] = task = asyncio.create_task(self._run(request))
        task.add_done_callback(partial(self._answer, request.id))  # one that is cancelled may never begin

    def _answer(self, request_id: int, task: asyncio.Task[bytes]) -> None:
        del self._tasks[request_id]
        if not self._tasks:
            self._tidy()
        try:
            answer = session.encode_reply(session.Reply(request_id, task.result()))
        except asyncio.CancelledError:
            answer = session.encode_refusal(session.Refusal(request_id, Cancelled("it was cancelled")))
        except XformError as error:
            answer = session.encode_refusal(session.Refusal(request_id, error))
        try:
            self._runner.channel.send(answer)
        except Exception as error:
            self._stop(error)

    async def _run(self, request: session.Request) -> bytes:
        (call,) = self._runner.plans[request.spec]
        transform, limit_bytes = call.entry.transform, self._runner.setup.max_result_bytes
        if not self._is_in_folder:  # several may have been read at once, and the first of them cancelled
            self._runner.enter_folder()
            self._is_in_folder = True
        folder = self._runner.make_folder() if "file" in (transform.kind, transform.result_kind) else ""
        try:
            calls.check_fits([call], len(request.poem), limit_bytes)
            with ends_in(min(worker.timeout_s(request), transform.timeout_s or math.inf)):
                result = await calls.invoke(call, calls.argument(call, request.poem, folder))
            return calls.content(call, result, folder, limit_bytes)
        except BaseException as error:
            raise self._explain(call, request.id, error) from None
        finally:
            self._runner.end_if_forked()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _explain(self, call: Call, request_id: int, error: BaseException) -> BaseException:
        self._runner.end_if_forked()
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            return error
        if worker.is_out_of_memory(error):
            worker.limit_memory(worker.NO_LIMIT)  # what follows needs memory
            limit = f"worker_memory_bytes is {self._runner.setup.memory_bytes} bytes"
            died = TransformDied(f"{call.name} ran out of memory; {limit}")
            self._runner.channel.send(session.encode_refusal(session.Refusal(request_id, died)))
            os._exit(0)
        explained = self._runner.explain(request_id, call, error)
        if isinstance(error, RuntimeError) and str(error).startswith("Task got bad yield"):
            advice = "an async def runs on asyncio; to await Deferreds, write inline=True"
            return TransformFailed(f"{call.name} awaits what is not asyncio's: {advice}")
        return explained

    def _tidy(self) -> None:
        self._is_in_folder = False
        if lost := self._state.restore():
            self._runner.worn = f"is not as it was before its jobs on asyncio: {', '.join(lost)}"
        self._runner.clean_up()
        self._runner.prepare_folder()


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
    return asyncio.Task(_Steps(coroutine, _request_id.get()), loop=loop, **more)


class _Steps(Coroutine[Any, Any, Any]):
    """A coroutine that notes whose it is at each step, as those do of which a job makes tasks of its own."""

    def __init__(self, coroutine: Any, request_id: int) -> None:
        self._coroutine, self._request_id = coroutine, request_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # its state, for who looks into tasks, such as anyio

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("only a task runs it")

    def _step(self, run: Callable[..., Any], *arguments: Any) -> Any:
        reaper.last_step.begin(self._request_id)
        try:
            return run(*arguments)
        finally:
            reaper.last_step.begin(0)

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *raised: Any) -> Any:
        return self._step(self._coroutine.throw, *raised)

    def close(self) -> None:
        self._coroutine.close()


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Print what was raised where nobody awaits it, without its message, which may quote a poem."""
    if (error := context.get("exception")) is not None:
        print(f"on asyncio, where nobody awaits it:\n{SafeTraceback.redacted(error).traceback}", file=sys.stderr)
