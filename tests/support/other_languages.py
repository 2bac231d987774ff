"""The clients in other languages, each driven by a program of its own that takes lines of JSON."""

import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from support.processes import DEADLINE_S, environment

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "languages"
JAVASCRIPT, GO = ROOT / "clients" / "javascript" / "xformd.mjs", ROOT / "clients" / "go"
BUILD_S = 120.0  # the first time, with nothing of it compiled yet
INSTALL = {"node": "nodejs", "deno": "Deno, say by pip", "go": "golang-go", "gofmt": "golang-go"}


class Failed(Exception):
    """The error of a request, as its client has it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code, self.message = error["code"], error["message"]
        self.retryable, self.retry_after_ms = error.get("retryable"), error.get("retryAfterMs")


def need(tool: str) -> None:
    """Skip the test where a tool is not there."""
    if shutil.which(tool) is None:
        pytest.skip(f"install {INSTALL[tool]}")


def build(folder: Path, source: Path) -> Path:
    """Compile a Go program without asking the network for anything."""
    need("go")
    variables = environment({"GOPROXY": "off", "GOTOOLCHAIN": "local"})
    variables.setdefault("HOME", str(folder))
    made = folder / "program"
    done = subprocess.run(
        ["go", "build", "-o", str(made), "."],
        cwd=source,
        env=variables,
        capture_output=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return made


def command_for(language: str, folder: Path) -> list[str]:
    """Return the command that runs a language's client, without the task."""
    if language == "go":
        return [str(build(folder, FOLDER))]
    need(language)
    start = ["node"] if language == "node" else ["deno", "run", "--no-config", "--no-lock", "--allow-all"]
    return [*start, str(FOLDER / "runner.mjs"), JAVASCRIPT.as_uri()]


class Driver:
    """A program with clients in it."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            [*command, "drive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._clients = itertools.count(1)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            waiter = self._waiting.pop(answer["id"])
            if "error" in answer:
                waiter.set_exception(Failed(answer["error"]))
            else:
                waiter.set_result(answer)

    def start(self, act: str, **order: Any) -> "tuple[int, Future[dict[str, Any]]]":
        """Give an order; return its id, and what comes of it."""
        number = next(self._ids)
        answer: Future[dict[str, Any]] = Future()
        self._waiting[number] = answer
        assert self._process.stdin is not None
        given = {name: value for name, value in order.items() if value is not None}
        self._process.stdin.write(json.dumps({"act": act, "id": number, **given}) + "\n")
        self._process.stdin.flush()
        return number, answer

    def client(self, address: str, **config: Any) -> "Client":
        """Make a client."""
        label = f"client {next(self._clients)}"
        self.start("client", client=label, address=address, **config)[1].result(DEADLINE_S)
        return Client(self, label)

    def stop(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


class Request:
    """A request that has begun."""

    def __init__(self, driver: Driver, number: int, answer: "Future[dict[str, Any]]") -> None:
        self._driver, self._number, self._answer = driver, number, answer

    def result(self) -> str | bytes:
        answer = self._answer.result(DEADLINE_S)
        found: str = answer.get("text", "")
        return answer["bytes"].encode("latin-1") if "bytes" in answer else found

    def cancel(self) -> None:
        self._driver.start("cancel", target=self._number)


class Client:
    """One client in a program."""

    def __init__(self, driver: Driver, label: str) -> None:
        self._driver, self._label = driver, label

    def start(self, spec: str, poem: str | bytes, timeout: float | None = None, **options: Any) -> Request:
        """Begin a request."""
        given: dict[str, Any] = {"poem": poem} if isinstance(poem, str) else {"bytes": poem.decode("latin-1")}
        timeout_ms = None if timeout is None else timeout * 1000
        return self._begin("xform", spec=spec, options=options, timeoutMs=timeout_ms, **given)

    def xform(self, spec: str, poem: str | bytes, timeout: float | None = None, **options: Any) -> str | bytes:
        """Return the result of a request."""
        return self.start(spec, poem, timeout, **options).result()

    def do(self, act: str) -> str | bytes:
        """List, ping or close."""
        return self._begin(act).result()

    def _begin(self, act: str, **order: Any) -> Request:
        return Request(self._driver, *self._driver.start(act, client=self._label, **order))


Make = Callable[..., Client]
