"""What the connections of one HTTP port have in common: the application, uvicorn's settings, a log for its faults."""

import logging
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from xformd.telemetry.metrics import Metrics


class _Faults(logging.Handler):
    """Puts what uvicorn says of an application that failed into our log."""

    log = Logger(namespace="xformd.http")

    def emit(self, record: logging.LogRecord) -> None:
        """Log a fault of ours."""
        error = record.exc_info[1] if record.exc_info else None
        failure = None if error is None else Failure(error)
        self.log.failure("HTTP: {message}", failure, message=record.getMessage().strip())


# Of no tree: what clients do wrong is said elsewhere, and Python would print it to standard error.
_faults = logging.Logger("xformd.http", logging.ERROR)
_faults.addHandler(_Faults())


@attrs.frozen
class Answering:
    """What the connections of one HTTP port have in common.

    Args:
        metrics: where to count what no application has seen.
        config: uvicorn's, with the application.
        state: uvicorn's, of a running server.
        faults: where uvicorn says what went wrong.
    """

    metrics: Metrics
    config: Config
    state: ServerState = attrs.field(factory=ServerState)
    faults: logging.Logger = _faults


def answering(application: Any, metrics: Metrics) -> Answering:
    """Prepare to answer with an ASGI application."""
    config = Config(
        application,
        http=HttpToolsProtocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",  # what it refuses, we log
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    return Answering(metrics, config)
