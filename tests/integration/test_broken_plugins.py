"""A broken plugin fails alone and is named with its reason: shown with real packages, built and installed here."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support.broken_packages import BROKEN, IMPORTED_FOLDER, NOISE, PACKAGES, Broken, good_module, install_all
from support.packages import VERSION, Environment
from support.processes import serving
from xformd.plugins.builtin import data, encodings, lines, poetry, text

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("broken_plugins")]

Listing = dict[str, Any]

RIVALS = ("rival-one", "rival-two")
"""Both provide the transform `ambiguous`."""

MODULES = (data, encodings, lines, poetry, text)
BUILT_INS = {transform.name for module in MODULES for transform in module.xformd_transforms()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install_all(tmp_path_factory.mktemp("broken_plugins"))


@pytest.fixture(scope="module")
def listed(environment: Environment) -> CompletedProcess[str]:
    return environment.xformd("list-transforms", "--json")


@pytest.fixture(scope="module")
def listing(listed: CompletedProcess[str]) -> Listing:
    return read(listed)


def read(done: CompletedProcess[str]) -> Listing:
    assert done.returncode == 0
    listing: Listing = json.loads(done.stdout)
    return listing


def plugins_of(listing: Listing, distribution: str) -> list[Listing]:
    return [plugin for plugin in listing["plugins"] if plugin["distribution"] == distribution]


def assert_refused(done: CompletedProcess[str], *words: str, status: int = 78) -> None:
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = [line for line in done.stderr.splitlines() if line != NOISE]
    assert unsaid(words, line) == []


def unsaid(words: Iterable[str], text: str) -> list[str]:
    """Return the words that are missing from a text."""
    return [word for word in words if word not in text]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.kind)
def test_a_broken_plugin_is_listed_with_its_distribution_and_its_reason(listing: Listing, broken: Broken) -> None:
    (plugin,) = plugins_of(listing, broken.distribution)
    assert (plugin["state"], plugin["transforms"]) == ("failed", [])
    assert unsaid(broken.reason, plugin["reason"]) == []
    assert broken.distribution not in {transform["distribution"] for transform in listing["transforms"]}


def test_a_distribution_without_metadata_is_not_dropped(listing: Listing) -> None:
    nameless = plugins_of(listing, "unknown")
    assert {plugin["name"] for plugin in nameless} == {"nameless-one", "nameless-two"}
    assert {plugin["version"] for plugin in nameless} == {""}


def test_what_is_whole_works_beside_what_is_broken(environment: Environment, listing: Listing) -> None:
    (healthy,) = plugins_of(listing, "healthy-dist")
    assert (healthy["state"], healthy["transforms"], healthy["version"]) == ("active", ["healthy"], VERSION)
    assert {plugin["state"] for plugin in plugins_of(listing, "xformd")} == {"active"}
    assert {entry["name"] for entry in listing["transforms"] if entry["distribution"] == "xformd"} == BUILT_INS
    assert environment.xformd("run", "healthy", poem="Owl").stdout == "healthy-dist: Owl"


def test_a_plugin_that_prints_when_imported_keeps_standard_output_clean(listed: CompletedProcess[str]) -> None:
    assert NOISE in listed.stderr.splitlines()
    assert NOISE not in listed.stdout
    assert plugins_of(read(listed), "noisy-dist")[0]["state"] == "active"


def test_two_distributions_may_have_the_same_entry_point_name(listing: Listing) -> None:
    twins = [plugin for plugin in listing["plugins"] if plugin["name"] == "twin"]
    assert [(plugin["distribution"], plugin["state"], plugin["transforms"]) for plugin in twins] == [
        ("twin-one", "active", ["first-twin"]),
        ("twin-two", "active", ["second-twin"]),
    ]


def test_a_transform_of_two_plugins_belongs_to_neither(environment: Environment, listing: Listing) -> None:
    assert "ambiguous" not in {transform["name"] for transform in listing["transforms"]}
    (conflict,) = [conflict for conflict in listing["conflicts"] if conflict["name"] == "ambiguous"]
    assert (conflict["distributions"], conflict["winner"]) == ([*RIVALS], None)
    assert_refused(environment.xformd("run", "ambiguous", poem="Owl"), "ambiguous-transform", *RIVALS, status=66)


@pytest.mark.parametrize("distribution", ["healthy-dist", "broken-generator", "nosuch"])
def test_a_preference_for_a_distribution_without_the_transform_is_refused(
    environment: Environment, distribution: str
) -> None:
    done = environment.xformd("list-transforms", "--prefer", f"ambiguous={distribution}")
    assert_refused(done, "--prefer: ", f"ambiguous={distribution}", *RIVALS)


def test_a_built_in_keeps_its_name_unless_another_is_preferred(environment: Environment, listing: Listing) -> None:
    (conflict,) = [conflict for conflict in listing["conflicts"] if conflict["name"] == "cummingsify"]
    assert (conflict["distributions"], conflict["winner"]) == (["usurper", "xformd"], "xformd")
    assert environment.xformd("run", "cummingsify", poem="OWL").stdout == "owl"
    preferring = environment.xformd("run", "cummingsify", "--prefer", "cummingsify=usurper", poem="OWL")
    assert preferring.stdout == "usurper: OWL"


@pytest.mark.parametrize(
    ("selection", "modules"),
    [("none", set()), ("healthy-dist", {"healthy_dist"}), ("Twin_One,twin-two", {"twin_one", "twin_two"})],
)
def test_only_selected_plugins_are_imported(
    environment: Environment, tmp_path: Path, selection: str, modules: set[str]
) -> None:
    variables = {IMPORTED_FOLDER: str(tmp_path)}
    listing = read(environment.xformd("list-transforms", "--json", "--plugins", selection, variables=variables))
    assert {path.name for path in tmp_path.iterdir()} == modules
    states = {plugin["distribution"]: plugin["state"] for plugin in listing["plugins"]}
    active = {package.distribution for package in PACKAGES if states[package.distribution] == "active"}
    assert active == {module.replace("_", "-") for module in modules}
    assert states["xformd"] == "active"


@pytest.mark.parametrize(
    ("name", "distributions"),
    [("broken-raises", {"broken-raises"}), ("noisy", {"noisy-dist"}), ("twin", {"twin-one", "twin-two"})],
)
def test_a_blocked_plugin_is_never_imported(
    environment: Environment, tmp_path: Path, name: str, distributions: set[str]
) -> None:
    variables = {IMPORTED_FOLDER: str(tmp_path)}
    listing = read(environment.xformd("list-transforms", "--json", "--block", name, variables=variables))
    blocked = {plugin["distribution"] for plugin in listing["plugins"] if plugin["state"] == "blocked"}
    assert blocked == distributions
    imported = {path.name for path in tmp_path.iterdir()}
    assert imported.isdisjoint(distribution.replace("-", "_") for distribution in distributions)
    assert "healthy_dist" in imported


@pytest.mark.parametrize("command", ["list-transforms --plugins", "list-transforms --block", "check"])
def test_a_selection_of_nothing_that_is_there_is_refused(environment: Environment, command: str) -> None:
    done = environment.xformd(*command.split(), "nosuch")
    assert_refused(done, "nosuch", *[package.distribution for package in PACKAGES])


def test_loose_files_are_plugins_and_fail_alone(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "loose.py").write_text(good_module("loose file", "loose"), encoding="utf-8")
    (tmp_path / "torn.py").write_text("import nope_not_there\n", encoding="utf-8")
    listing = read(environment.xformd("list-transforms", "--json", "--plugins-dir", tmp_path))
    states = {plugin["distribution"]: (plugin["state"], plugin["reason"]) for plugin in listing["plugins"]}
    assert states["loose.py"] == ("active", "")
    why = "import of torn.py failed: ModuleNotFoundError: No module named 'nope_not_there'"
    assert states["torn.py"] == ("failed", f"{why} ({tmp_path / 'torn.py'}, line 1: import nope_not_there)")
    assert environment.xformd("run", "loose", "--plugins-dir", tmp_path, poem="Owl").stdout == "loose file: Owl"


def test_a_folder_of_loose_files_must_be_there(environment: Environment, tmp_path: Path) -> None:
    missing = tmp_path / "nosuch"
    done = environment.xformd("list-transforms", "--plugins-dir", missing)
    assert_refused(done, f"--plugins-dir: no such folder: {missing}")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").touch()
    folders = ["--plugins-dir", tmp_path / "a", "--plugins-dir", tmp_path / "b"]
    assert_refused(environment.xformd("list-transforms", *folders), "a/same.py", "b/same.py", "have the same name")


def test_strict_names_every_failure(environment: Environment) -> None:
    done = environment.xformd("list-transforms", "--strict")
    assert (done.returncode, done.stdout) == (78, "")
    assert unsaid([broken.distribution for broken in BROKEN], done.stderr) == []


def test_strict_names_conflicts(environment: Environment) -> None:
    strict = ["list-transforms", "--strict", "--plugins", "rival-one,rival-two"]
    refused = environment.xformd(*strict)
    assert refused.returncode == 78
    assert "provided by rival-one 1.2.3 (ambiguous) and rival-two 1.2.3 (ambiguous): none is used" in refused.stderr
    assert environment.xformd(*strict, "--prefer", "ambiguous=rival-two").returncode == 0


def test_check_of_one_distribution_names_no_other(environment: Environment) -> None:
    done = environment.xformd("check", "healthy-dist")
    assert (done.returncode, done.stdout) == (0, "ok      healthy: 1 example\n")
    failed = environment.xformd("check", BROKEN[0].distribution)
    (line,) = failed.stdout.splitlines()
    assert failed.returncode == 1
    assert unsaid([BROKEN[0].distribution, *BROKEN[0].reason], line) == []


def test_check_of_everything_names_every_failure(environment: Environment) -> None:
    done = environment.xformd("check")
    assert done.returncode == 1
    assert "ok      healthy: 1 example" in done.stdout.splitlines()
    assert unsaid([f"FAILED  plugin {broken.distribution}" for broken in BROKEN], done.stdout) == []


def test_a_server_starts_with_everything_broken_installed(
    environment: Environment, listing: Listing, tmp_path: Path
) -> None:
    states = Counter(plugin["state"] for plugin in listing["plugins"])
    with serving(tmp_path, command=(str(environment.python), "-m", "xformd")) as server:
        assert f"{len(listing['transforms'])} transforms from {states['active']} plugins" in server.greeting
        failed = "\n".join(server.read_line() for _ in range(states["failed"]))
        for broken in BROKEN:
            (line,) = re.findall(rf"^failed: plugin {broken.distribution}[ :].*$", failed, re.M)
            assert unsaid(broken.reason, line) == []
        assert server.ask(b"11:healthy.Owl,") == b"17:healthy-dist: Owl,"
        assert server.stop() == 0
        assert "Traceback" not in server.log
