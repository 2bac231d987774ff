"""Which plugins an operator selects, and their settings, checked against the plugins that were found.

Pure: nothing here imports a plugin. Invariant: a selected name that matches no plugin is an error, never ignored.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from xformd.errors import ConfigError
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import NOT_SELECTED, Plugin
from xformd.plugins.settings import Table, did_you_mean


@attrs.frozen(kw_only=True)
class Selection:
    """Which plugins to load. The built-in ones are always loaded, unless they are blocked."""

    distributions: frozenset[str] | None = None  # installed packages to load; None for all of them
    blocked: frozenset[str] = frozenset()  # distributions, entry points or loose files that are never imported
    directories: tuple[Path, ...] = ()  # folders with loose ``*.py`` plugins
    preferred: Mapping[str, str] = attrs.field(factory=dict)  # transform name to the distribution that shall provide it
    strict: bool = False  # whether a failed plugin or an unresolved conflict is an error
    ignore_unknown: bool = False  # whether to skip the check for names that match no plugin
    settings: Mapping[str, Table] = attrs.field(factory=dict)  # normalized distribution to the table with its settings
    commands: Mapping[str, Table] = attrs.field(factory=dict)  # transform name to the table of its command
    required: frozenset[str] = frozenset()  # what must be there, and in which versions: ``xformd-images==1.2.*``


EVERYTHING = Selection()
"""Every installed plugin."""


def check_names(selection: Selection, candidates: Collection[Candidate]) -> None:
    """Reject a selection with a name that matches no plugin: the ``ConfigError`` has the names to choose from."""
    if selection.ignore_unknown:
        return
    known = {normalize(each.distribution): each.distribution for each in candidates if not each.is_built_in}
    for name in sorted(selection.settings.keys() - known.keys()):
        problem = f"plugin {name}: no such plugin is installed{did_you_mean(name, known.values())}"
        raise ConfigError(selection.settings[name].locate("", problem))
    found = {candidate.distribution for candidate in candidates if not candidate.is_loose}
    for name in sorted(selection.distributions or ()):
        if normalize(name) not in map(normalize, found):
            raise ConfigError(not_installed(name, found), setting="plugins")
    for name in sorted(selection.blocked):
        if not any(candidate.has_name(name) for candidate in candidates):
            names = ", ".join(sorted({candidate.name for candidate in candidates} | found))
            raise ConfigError(f"no plugin or distribution is named {name!r}; there are {names}", setting="block")


def check_required(selection: Selection, plugins: Sequence[Plugin]) -> None:
    """Raise ``ConfigError``, with a line for each distribution that is missing, kept out, or of another version."""
    if problems := [why for text in sorted(selection.required) if (why := _unmet(text, plugins))]:
        raise ConfigError("what is installed is not what is required", details=problems, setting="require")


def _unmet(text: str, plugins: Sequence[Plugin]) -> str:
    """Return what is wrong with a required distribution; the empty string if nothing is."""
    from packaging.requirements import Requirement  # for those who require something

    wanted = Requirement(text)
    found = [plugin for plugin in plugins if normalize(plugin.distribution) == normalize(wanted.name)]
    if not found:
        return f"{text}: {not_installed(wanted.name, {plugin.distribution for plugin in plugins})}"
    if all(plugin.state == "blocked" for plugin in found):
        return f"{text}: {found[0].distribution} is installed, but {found[0].reason}"
    # As pip sees what is installed: a pre-release is a version like any other.
    if wanted.specifier.contains(version := found[0].version or "unknown", prereleases=True):
        return ""
    return f"{text}: version {version} is installed; run: pip install '{text}'"


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
