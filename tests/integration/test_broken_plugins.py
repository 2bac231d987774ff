"""A broken plugin fails alone and is named with its reason: shown with real packages, built and installed here."""

import json
import re
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support.broken_packages import BROKEN, IMPORTED_FOLDER, NOISE, PACKAGES, Broken, good_module, install_all
from support.packages import TIMEOUT_S, VERSION, Environment
from xformd.plugins.builtin import poetry, text

pytestmark = pytest.mark.xdist_group("broken_plugins")

Listing = dict[str, Any]

RIVALS = ("rival-one", "rival-two")
"""Both provide the transform `ambiguous`."""

BUILT_INS = {transform.name for module in (poetry, text) for transform in module.xformd_transforms()}

each_broken = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.kind)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One environment with all packages in it, broken and whole."""
    return install_all(tmp_path_factory.mktemp("broken_plugins"))


@pytest.fixture(scope="module")
def listed(environment: Environment) -> CompletedProcess[str]:
    """What `list-transforms --json` prints of everything."""
    return environment.xformd("list-transforms", "--json")


@pytest.fixture(scope="module")
def listing(listed: CompletedProcess[str]) -> Listing:
    """The same, read."""
    return read(listed)


@pytest.fixture(scope="module")
def table(environment: Environment) -> list[str]:
    """The lines that `list-transforms` prints of everything."""
    return environment.xformd("list-transforms").stdout.splitlines()


def read(done: CompletedProcess[str]) -> Listing:
    """Give what `list-transforms --json` printed."""
    assert done.returncode == 0
    listing: Listing = json.loads(done.stdout)
    return listing


def plugins_of(listing: Listing, distribution: str) -> list[Listing]:
    return [plugin for plugin in listing["plugins"] if plugin["distribution"] == distribution]


def imported(folder: Path) -> set[str]:
    """Give the packages' modules that were imported by commands that were told of this folder."""
    return {path.name for path in folder.iterdir()}


def unsaid(words: Iterable[str], text: str) -> list[str]:
    """Give those of the words that a text leaves out."""
    return [word for word in words if word not in text]


def assert_refused(done: CompletedProcess[str], status: int, *words: str) -> None:
    """A command ended with a status and, in place of a result, with one line that says all of these words."""
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = [line for line in done.stderr.splitlines() if line != NOISE]
    assert unsaid(words, line) == []


@each_broken
def test_a_broken_plugin_is_listed_with_its_distribution_and_its_reason(listing: Listing, broken: Broken) -> None:
    """Each broken package is one failed plugin with the telling words, and has no transforms."""
    (plugin,) = plugins_of(listing, broken.distribution)
    assert (plugin["state"], plugin["transforms"]) == ("failed", [])
    assert unsaid(broken.reason, plugin["reason"]) == []
    assert broken.distribution not in {transform["distribution"] for transform in listing["transforms"]}


def test_a_distribution_without_metadata_is_not_dropped(listing: Listing) -> None:
    """Packages whose METADATA is gone have no name, and none of them hides another."""
    nameless = plugins_of(listing, "unknown")
    assert {plugin["name"] for plugin in nameless} == {"nameless-one", "nameless-two"}
    assert {plugin["version"] for plugin in nameless} == {""}


@each_broken
def test_the_table_has_one_line_for_each_broken_plugin(table: list[str], broken: Broken) -> None:
    """The table ends with a line for each failure, which names the plugin and the reason."""
    (line,) = [line for line in table if re.match(rf"failed: plugin {broken.distribution}[ :]", line)]
    assert unsaid(broken.reason, line) == []


def test_what_is_whole_works_beside_what_is_broken(environment: Environment, listing: Listing) -> None:
    """The healthy plugin and the built-in ones are active, and a healthy transform runs."""
    (healthy,) = plugins_of(listing, "healthy-dist")
    assert (healthy["state"], healthy["transforms"], healthy["version"]) == ("active", ["healthy"], VERSION)
    assert {plugin["state"] for plugin in plugins_of(listing, "xformd")} == {"active"}
    assert {entry["name"] for entry in listing["transforms"] if entry["distribution"] == "xformd"} == BUILT_INS
    assert environment.xformd("run", "healthy", poem="Owl").stdout == "healthy-dist: Owl"


def test_a_plugin_that_prints_when_imported_keeps_standard_output_clean(listed: CompletedProcess[str]) -> None:
    """What a plugin prints goes to standard error, and the plugin is active."""
    assert NOISE in listed.stderr.splitlines()
    assert NOISE not in listed.stdout
    assert plugins_of(read(listed), "noisy-dist")[0]["state"] == "active"


def test_two_distributions_may_have_the_same_entry_point_name(listing: Listing) -> None:
    """Both load, each under its own distribution, and nothing is dropped."""
    twins = [plugin for plugin in listing["plugins"] if plugin["name"] == "twin"]
    assert [(plugin["distribution"], plugin["state"], plugin["transforms"]) for plugin in twins] == [
        ("twin-one", "active", ["first-twin"]),
        ("twin-two", "active", ["second-twin"]),
    ]


def test_a_transform_of_two_plugins_belongs_to_neither(listing: Listing) -> None:
    """Nobody has the name, and the conflict names both distributions."""
    assert "ambiguous" not in {transform["name"] for transform in listing["transforms"]}
    (conflict,) = [conflict for conflict in listing["conflicts"] if conflict["name"] == "ambiguous"]
    assert (conflict["distributions"], conflict["winner"]) == (["rival-one", "rival-two"], None)


def test_a_transform_of_two_plugins_is_ambiguous_when_it_is_run(environment: Environment) -> None:
    """`run` answers `ambiguous-transform` and names both distributions."""
    assert_refused(environment.xformd("run", "ambiguous", poem="Owl"), 66, "ambiguous-transform", *RIVALS)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("settle", ["--prefer", "--block"])
def test_a_conflict_can_be_settled(environment: Environment, rival: str, settle: str) -> None:
    """Either plugin gets the name when it is preferred, or when the other one is blocked."""
    (other,) = {*RIVALS} - {rival}
    choice = f"ambiguous={rival}" if settle == "--prefer" else other
    done = environment.xformd("run", "ambiguous", settle, choice, poem="Owl")
    assert (done.returncode, done.stdout) == (0, f"{rival}: Owl")


@pytest.mark.parametrize("distribution", ["healthy-dist", "broken-generator", "nosuch"])
def test_a_preference_for_a_distribution_without_the_transform_is_refused(
    environment: Environment, distribution: str
) -> None:
    """`--prefer` must name one of those that provide it, and the refusal says which they are."""
    done = environment.xformd("list-transforms", "--prefer", f"ambiguous={distribution}")
    assert_refused(done, 78, "--prefer: ", f"ambiguous={distribution}", *RIVALS)


def test_a_built_in_keeps_its_name(environment: Environment, listing: Listing, table: list[str]) -> None:
    """A plugin with a built-in's name does not get it, and the conflict is reported."""
    (conflict,) = [conflict for conflict in listing["conflicts"] if conflict["name"] == "cummingsify"]
    assert (conflict["distributions"], conflict["winner"]) == (["usurper", "xformd"], "xformd")
    assert [line for line in table if line.startswith("conflict: ") and "usurper" in line]
    assert environment.xformd("run", "cummingsify", poem="OWL").stdout == "owl"


def test_a_built_in_gives_way_to_a_preferred_plugin(environment: Environment) -> None:
    """`--prefer` gives a built-in's name to the plugin."""
    done = environment.xformd("run", "cummingsify", "--prefer", "cummingsify=usurper", poem="OWL")
    assert (done.returncode, done.stdout) == (0, "usurper: OWL")


@pytest.mark.parametrize(
    ("selection", "modules"),
    [("none", set()), ("healthy-dist", {"healthy_dist"}), ("Twin_One,twin-two", {"twin_one", "twin_two"})],
)
def test_only_selected_plugins_are_imported(
    environment: Environment, tmp_path: Path, selection: str, modules: set[str]
) -> None:
    """A plugin that is not selected is listed and never imported."""
    variables = {IMPORTED_FOLDER: str(tmp_path)}
    listing = read(environment.xformd("list-transforms", "--json", "--plugins", selection, variables=variables))
    assert imported(tmp_path) == modules
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
    """`--block` takes a distribution or an entry point, lists it as blocked and lets the others be."""
    variables = {IMPORTED_FOLDER: str(tmp_path)}
    listing = read(environment.xformd("list-transforms", "--json", "--block", name, variables=variables))
    blocked = {plugin["distribution"] for plugin in listing["plugins"] if plugin["state"] == "blocked"}
    assert blocked == distributions
    assert imported(tmp_path).isdisjoint(distribution.replace("-", "_") for distribution in distributions)
    assert "healthy_dist" in imported(tmp_path)


@pytest.mark.parametrize("option", ["--plugins", "--block"])
def test_a_selection_of_nothing_that_is_there_is_refused(environment: Environment, option: str) -> None:
    """The refusal names what is wrong and lists what there is."""
    done = environment.xformd("list-transforms", option, "nosuch")
    assert_refused(done, 78, "nosuch", *[package.distribution for package in PACKAGES])


def test_loose_files_are_plugins_and_fail_alone(environment: Environment, tmp_path: Path) -> None:
    """`--plugins-dir` loads a folder's files; a broken one is named and harms nobody."""
    (tmp_path / "loose.py").write_text(good_module("loose file", "loose"), encoding="utf-8")
    (tmp_path / "torn.py").write_text("import nope_not_there\n", encoding="utf-8")
    listing = read(environment.xformd("list-transforms", "--json", "--plugins-dir", tmp_path))
    states = {plugin["distribution"]: (plugin["state"], plugin["reason"]) for plugin in listing["plugins"]}
    assert states["loose.py"] == ("active", "")
    missing = "ModuleNotFoundError: No module named 'nope_not_there'"
    assert states["torn.py"] == ("failed", f"import of torn.py failed: {missing}")
    assert environment.xformd("run", "loose", "--plugins-dir", tmp_path, poem="Owl").stdout == "loose file: Owl"


def test_a_folder_of_loose_files_must_be_there(environment: Environment, tmp_path: Path) -> None:
    """`--plugins-dir` names the folder that is missing, and files that have the same name."""
    missing = tmp_path / "nosuch"
    assert_refused(
        environment.xformd("list-transforms", "--plugins-dir", missing),
        78,
        f"--plugins-dir: no such folder: {missing}",
    )
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").touch()
    folders = ["--plugins-dir", tmp_path / "a", "--plugins-dir", tmp_path / "b"]
    assert_refused(environment.xformd("list-transforms", *folders), 78, "a/same.py", "b/same.py", "have the same name")


@pytest.mark.parametrize("distributions", [["broken-exit", "broken-import"], None], ids=["two", "all"])
def test_strict_names_every_failure(environment: Environment, distributions: list[str] | None) -> None:
    """`--strict` refuses to start, and names every failed plugin, however many there are."""
    selection = [] if distributions is None else ["--plugins", ",".join(distributions)]
    done = environment.xformd("list-transforms", "--strict", *selection)
    assert (done.returncode, done.stdout) == (78, "")
    expected = [broken.distribution for broken in BROKEN] if distributions is None else distributions
    assert unsaid(expected, done.stderr) == []


def test_strict_names_conflicts(environment: Environment) -> None:
    """`--strict` refuses an ambiguous name until it is settled."""
    strict = ["list-transforms", "--strict", "--plugins", "rival-one,rival-two"]
    refused = environment.xformd(*strict)
    assert refused.returncode == 78
    assert "transform ambiguous is provided by rival-one and rival-two: neither is used" in refused.stderr
    assert environment.xformd(*strict, "--prefer", "ambiguous=rival-two").returncode == 0


def test_strict_accepts_a_selection_without_problems(environment: Environment) -> None:
    """What is not selected is no failure."""
    done = environment.xformd("run", "healthy", "--strict", "--plugins", "healthy-dist", poem="Owl")
    assert (done.returncode, done.stdout) == (0, "healthy-dist: Owl")


def test_check_passes_a_healthy_distribution(environment: Environment) -> None:
    """`check` runs the example of a healthy distribution and of no other."""
    done = environment.xformd("check", "healthy-dist")
    assert (done.returncode, done.stdout) == (0, "ok      healthy: 1 example\n")


@pytest.mark.parametrize("broken", BROKEN[:3], ids=lambda broken: broken.kind)
def test_check_says_why_a_distribution_is_broken(environment: Environment, broken: Broken) -> None:
    """`check` fails a broken distribution with its reason, and speaks of no other."""
    done = environment.xformd("check", broken.distribution)
    (line,) = done.stdout.splitlines()
    assert done.returncode == 1
    assert unsaid([broken.distribution, *broken.reason], line) == []


def test_check_of_everything_names_every_failure(environment: Environment) -> None:
    """Without a distribution, `check` runs every example and names every broken plugin."""
    done = environment.xformd("check")
    assert done.returncode == 1
    assert "ok      healthy: 1 example" in done.stdout.splitlines()
    assert unsaid([f"FAILED  plugin {broken.distribution}" for broken in BROKEN], done.stdout) == []


def test_check_refuses_a_distribution_that_is_not_there(environment: Environment) -> None:
    """`check` lists what there is to check."""
    assert_refused(environment.xformd("check", "nosuch"), 78, "nosuch", "healthy-dist")


def test_a_server_starts_with_everything_broken_installed(environment: Environment, listing: Listing) -> None:
    """The server says where it listens, what it has and what failed; it answers, and SIGTERM ends it well."""
    failed = [plugin for plugin in listing["plugins"] if plugin["state"] == "failed"]
    active = [plugin for plugin in listing["plugins"] if plugin["state"] == "active"]
    with environment.start("serve", "--port", 0) as server:
        printed = server.read_until(lambda printed: printed.count("\nfailed: ") >= len(failed) and printed[-1] == "\n")
        assert f"\n{len(listing['transforms'])} transforms from {len(active)} plugins\n" in printed
        for broken in BROKEN:
            (line,) = re.findall(rf"^failed: plugin {broken.distribution}[ :].*$", printed, re.M)
            assert unsaid(broken.reason, line) == []
        (port,) = re.findall(r"^xformd \S+ listening on 127\.0\.0\.1:(\d+)$", printed, re.M)
        assert ask(int(port), b"11:healthy.Owl,") == b"17:healthy-dist: Owl,"
        assert server.end(signal.SIGTERM) == 0


def ask(port: int, request: bytes) -> bytes:
    """Send one classic request and read all of the reply."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as reply:
            return reply.read()
