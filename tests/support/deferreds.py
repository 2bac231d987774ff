"""Reading Deferreds in tests that have no reactor."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def outcome_of(deferred: Deferred[Any]) -> Any:
    """Return the result or the Failure of a Deferred that has fired."""
    outcomes: list[Any] = []
    deferred.addBoth(outcomes.append)
    assert outcomes, f"{deferred!r} has not fired"
    return outcomes[0]


def result_of(deferred: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has succeeded."""
    outcome = outcome_of(deferred)
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome


def error_of(deferred: Deferred[Any], kind: type[BaseException] | tuple[type[BaseException], ...]) -> Any:
    """Return the exception of a Deferred that has failed with this kind of exception, or one of these."""
    outcome = outcome_of(deferred)
    assert isinstance(outcome, Failure), f"it succeeded with {outcome!r}"
    assert isinstance(outcome.value, kind), f"it failed with {outcome.value!r}"
    return outcome.value


def has_fired(deferred: Deferred[Any]) -> bool:
    """Whether a Deferred has a result or a Failure."""
    return deferred.called and not deferred.paused
