"""Strategies of Hypothesis for what transforms take; they need ``hypothesis``.

@given(poem=poems(shout), options=options(shout))
def test_it_never_crashes(xform, poem, options):
    ...
"""

import inspect
import typing
from typing import Any

from hypothesis import strategies as st

from xformd.plugins.definition import Transform

_KINDS: dict[str, st.SearchStrategy[Any]] = {"text": st.text(), "bytes": st.binary(), "file": st.binary()}


def poems(transform: Transform) -> st.SearchStrategy[Any]:
    """Return any poem that the transform may be sent: ``str``, or ``bytes`` also for a file."""
    return _KINDS[transform.kind]


def options(transform: Transform) -> st.SearchStrategy[dict[str, Any]]:
    """Return options within their types and limits; those with a default may be missing."""
    hints = typing.get_type_hints(transform.function, include_extras=True)
    needed: dict[str, st.SearchStrategy[Any]] = {}
    others: dict[str, st.SearchStrategy[Any]] = {}
    for name, parameter in inspect.signature(transform.function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            is_needed = parameter.default is parameter.empty
            (needed if is_needed else others)[name] = st.from_type(hints[name]).filter(_can_be_sent)
    return st.fixed_dictionaries(needed, optional=others)


def _can_be_sent(value: object) -> bool:
    """Whether a value has a text form: NaN is no number that an option may be."""
    return value == value and value not in (float("inf"), float("-inf"))
