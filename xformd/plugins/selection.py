"""Which plugins an operator selects, checked against the plugins that were found.

Pure: nothing here imports a plugin. Invariant: a selected name that matches no plugin is an error, never ignored.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import attrs

from xformd.errors import ConfigError
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import NOT_SELECTED


@attrs.frozen(kw_only=True)
class Selection:
    """Which plugins to load. The built-in ones are always loaded, unless they are blocked.

    Args:
        distributions: installed packages to load; None for all of them.
        blocked: distributions, entry points or loose files to keep out before they are imported.
        directories: folders with loose ``*.py`` plugins.
        preferred: transform name to the distribution that shall provide it.
        strict: whether a failed plugin or an unresolved conflict is an error.
        ignore_unknown: whether to skip the check for names that match no plugin.
    """

    distributions: frozenset[str] | None = None
    blocked: frozenset[str] = frozenset()
    directories: tuple[Path, ...] = ()
    preferred: Mapping[str, str] = attrs.field(factory=dict)
    strict: bool = False
    ignore_unknown: bool = False


EVERYTHING = Selection()
"""Every installed plugin."""


def parse_distributions(text: str) -> frozenset[str] | None:
    """Parse the setting ``plugins``: ``all``, which gives None, ``none``, or distributions separated by commas."""
    if text in ("all", "none"):
        return None if text == "all" else frozenset()
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("no distribution is named; write 'none' to select none")
    if names & {"all", "none"}:
        raise ValueError(f"'all' and 'none' cannot be combined with other names: {text!r}")
    return names


def check_names(selection: Selection, candidates: Collection[Candidate]) -> None:
    """Reject a selection with a name that matches no plugin: the ``ConfigError`` has the names to choose from."""
    if selection.ignore_unknown:
        return
    found = {candidate.distribution for candidate in candidates if not candidate.is_loose}
    for name in sorted(selection.distributions or ()):
        if normalize(name) not in map(normalize, found):
            raise ConfigError(not_installed(name, found), setting="plugins")
    for name in sorted(selection.blocked):
        if not any(candidate.has_name(name) for candidate in candidates):
            known = ", ".join(sorted({candidate.name for candidate in candidates} | found))
            raise ConfigError(f"no plugin or distribution is named {name!r}; there are {known}", setting="block")


def not_installed(name: str, found: Iterable[str]) -> str:
    """Return the message for a distribution that has no plugins."""
    return f"no installed distribution {name!r} has xformd plugins; those that do: {', '.join(sorted(found))}"


def why_blocked(candidate: Candidate, selection: Selection) -> str:
    """Return why a plugin is kept out; the empty string if it is to be imported."""
    if any(candidate.has_name(name) for name in selection.blocked):
        return "blocked by the setting 'block'"
    if selection.distributions is None or candidate.is_built_in or candidate.is_loose:
        return ""
    selected = map(normalize, selection.distributions)
    return "" if normalize(candidate.distribution) in selected else NOT_SELECTED
