"""Settings of plugins: what a class of theirs makes of a table, how mistakes are told, and that no secret shows."""

import copy
import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest

import xformd
from xformd import Secret, hookimpl, transform
from xformd.errors import ConfigError, DefinitionError
from xformd.plugins import discovery, loader
from xformd.plugins.discovery import Candidate
from xformd.plugins.registry import Plugin
from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table, make_settings, read_class

KEY = "sk-very-secret-1234"


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@attrs.frozen
class Own:
    api_key: Secret
    timeout_s: float = 30.0
    retries: int | None = None
    loud: bool = False
    words: list[str] = attrs.field(factory=list)
    size: Size = Size.SMALL
    how: Literal["up", "down"] = "up"
    model: str = "m"
    folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Plain:
    api_key: Secret
    words: list[str] = dataclasses.field(default_factory=list)


def table(**values: Any) -> Table:
    """Return a table whose keys stand on lines of their own, below its header."""
    places = {"": "x.toml, line 1"} | {key: f"x.toml, line {line}" for line, key in enumerate(values, 2)}
    return Table(values, places, "/etc")


def made(own: Any, values: Table) -> Any:
    return make_settings(own, read_class(own), values, "xformd-owl")[0]


def mistakes(own: Any, values: Table) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        made(own, values)
    return caught.value.details


def test_a_table_becomes_an_instance_of_the_class() -> None:
    values = {"api_key": KEY, "timeout_s": 4, "retries": 2, "loud": True, "words": ["a", "b c"], "size": "large"}
    own = made(Own, table(**values, how="down", model="x", folder="there"))
    assert own == Own(Secret(KEY), 4.0, 2, True, ["a", "b c"], Size.LARGE, "down", "x", Path("/etc/there"))
    assert made(Own, table(api_key=KEY, folder="~")).folder == Path.home()
    assert made(Plain, table(api_key=KEY)) == Plain(Secret(KEY))


def test_the_text_of_variables_is_converted() -> None:
    own = made(Own, table(api_key=KEY, timeout_s="0.5", retries="3", loud="yes", words="a,b", size="large"))
    assert own == Own(Secret(KEY), 0.5, 3, True, ["a", "b"], Size.LARGE)


def test_each_mistake_has_a_line_of_its_own_and_quotes_no_secret() -> None:
    wrong = table(modle="x", api_key=5, timeout_s="soon", retries=[KEY], words=5, size="huge", model=True)
    found = mistakes(Own, wrong)
    assert found[4].startswith("x.toml, line 6: words takes a")
    assert (*found[:4], *found[5:]) == (
        "x.toml, line 2: unknown setting 'modle'; did you mean 'model'?",
        "x.toml, line 3: api_key takes a string",
        "x.toml, line 4: timeout_s takes a number, not 'soon'",
        f"x.toml, line 5: retries takes a whole number, not {[KEY]!r}",
        "x.toml, line 7: size takes one of small, large, not 'huge'",
        "x.toml, line 8: model takes a string, not True",
    )


def test_a_missing_setting_is_named_with_every_way_to_set_it() -> None:
    how = (
        'api_key is missing: set it, or api_key_file to a file that has it, in [plugin."xformd-owl"], '
        "or XFORMD_PLUGIN_XFORMD_OWL__API_KEY"
    )
    assert mistakes(Own, Table()) == (how,)
    assert mistakes(Own, table(model="x")) == (f"x.toml, line 1: {how}",)


def test_what_the_class_itself_rejects_is_a_mistake_too() -> None:
    @attrs.frozen
    class Picky:
        api_key: Secret
        most: int = attrs.field(default=1, validator=attrs.validators.lt(9))

        def __attrs_post_init__(self) -> None:
            if len(self.api_key.reveal()) > 3:
                raise ValueError(f"no such key: {self.api_key.reveal()}")

    assert mistakes(Picky, table(api_key=KEY)) == ("x.toml, line 1: ValueError: no such key: ***",)
    assert mistakes(Picky, table(api_key="k", most=9)) == ("x.toml, line 1: ValueError: 'most' must be < 9: 9",)


@pytest.mark.parametrize("content", ["k\u00e9y", "k\u00e9y\n", "k\u00e9y\r\n"])
def test_a_file_has_the_value_without_the_newline_at_its_end(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content, newline="")
    values = attrs.evolve(table(api_key_file="key"), folder=str(tmp_path))
    assert made(Own, values).api_key.reveal() == "k\u00e9y"
    (tmp_path / "key").write_text("a\n\n")
    assert made(Own, values).api_key.reveal() == "a\n"


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 65_537)
    (tmp_path / "odd").write_bytes(b"\xff")
    (tmp_path / "empty").write_text("\n")
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        "none": "No such file or directory",
        "long": "it has more than 65536 bytes",
        "odd": "it is not UTF-8",
        "empty": "it is empty",
        "pipe": "it is not a regular file",
        ".": "it is not a regular file",
        "a\0b": "embedded null byte",
    }
    for name, reason in reasons.items():
        values = attrs.evolve(table(api_key_file=name), folder=str(tmp_path))
        (line,) = mistakes(Own, values)
        assert line.startswith("x.toml, line 2: api_key_file: cannot read ")
        assert line.endswith(f": {reason}")
    assert mistakes(Own, table(api_key_file=5)) == ("x.toml, line 2: api_key_file takes the name of a file",)


def test_a_value_and_a_file_for_it_contradict_each_other(tmp_path: Path) -> None:
    assert mistakes(Own, table(api_key=KEY, api_key_file="key")) == (
        "x.toml, line 3: set api_key or api_key_file, not both",
    )


def test_a_field_may_end_like_a_file_itself() -> None:
    @attrs.frozen
    class Filed:
        model_file: Path
        model: str = "m"

    assert made(Filed, table(model_file="m.bin", model="x")) == Filed(Path("/etc/m.bin"), "x")


def test_without_a_class_the_values_are_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    values = attrs.evolve(table(api_key_file="key", a={"b": [1]}), folder=str(tmp_path))
    assert make_settings(dict, None, values) == ({"api_key": KEY, "a": {"b": [1]}}, [KEY])


def test_a_class_has_what_settings_can_be() -> None:
    @attrs.frozen
    class Odd:
        odd: complex = 1j

    with pytest.raises(DefinitionError, match="annotate option 'odd' as int, float"):
        read_class(Odd)
    for other in ({"a": int}, dict):
        with pytest.raises(DefinitionError, match="not an attrs class or a dataclass"):
            read_class(other)


# Secrets.


def test_a_secret_does_not_show() -> None:
    secret = Secret(KEY)
    own = made(Own, table(api_key=KEY))
    shown = [repr(secret), str(secret), f"{secret}", format(secret), repr(own), str([own]), repr(table(api_key=KEY))]
    shown += [repr(attrs.asdict(own)), repr(dataclasses.asdict(Plain(secret))), json.dumps([secret], default=str)]
    assert [text for text in shown if KEY in text] == []
    assert shown[:4] == ["Secret(***)"] * 4
    assert secret.reveal() == KEY


def test_a_secret_gets_nowhere_by_accident() -> None:
    leaks: list[Callable[[Any], object]] = [pickle.dumps, json.dumps, vars, iter, len]
    for leak in leaks:
        with pytest.raises(TypeError) as caught:
            leak(Secret(KEY))
        assert KEY not in str(caught.value)


def test_secrets_can_be_compared_and_copied() -> None:
    secret = Secret(KEY)
    assert secret == Secret(KEY) != Secret("other")
    assert secret != KEY
    assert copy.deepcopy(secret) is secret
    assert len({secret, Secret(KEY)}) == 1
    assert (bool(secret), bool(Secret(""))) == (True, False)


# Hooks.


def plugin(**hooks: Any) -> Candidate:
    module = SimpleNamespace(**{f"xformd_{name}": hookimpl(hook) for name, hook in hooks.items()})
    return Candidate(name="owl", distribution="xformd-owl", source="owl", load=lambda: module)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """The plugins that are installed, for the test to set."""
    candidates: list[Candidate] = []
    monkeypatch.setattr(discovery, "installed", lambda: candidates)
    return candidates


def loaded(candidates: list[Candidate], values: Table | None, **hooks: Any) -> Plugin:
    candidates[:] = [plugin(**hooks)]
    settings = {} if values is None else {"xformd-owl": values}
    (found,) = [each for each in loader.load(Selection(settings=settings)).plugins if each.name == "owl"]
    return found


def make_tell(settings: Any) -> list[xformd.Transform]:
    @transform
    def tell(poem: str) -> str:
        return f"{settings}"

    return [tell]


def test_a_plugin_gets_an_instance_of_its_class_and_its_types_are_listed(installed: list[Candidate]) -> None:
    found = loaded(installed, table(api_key=KEY, loud=True), settings=lambda: Own, transforms=make_tell)
    assert "loud=True" in found.transforms[0]("")
    assert dict(list(found.settings.items())[:5]) == {
        "api_key": "secret",
        "timeout_s": "float",
        "retries": "int",
        "loud": "bool",
        "words": "list of str",
    }
    assert found.settings["folder"] == "path"


def test_a_plugin_without_a_class_gets_a_mapping(installed: list[Candidate]) -> None:
    assert loaded(installed, table(a=1), transforms=make_tell).transforms[0]("") == "{'a': 1}"
    assert loaded(installed, None, transforms=make_tell).transforms[0]("") == "{}"


def test_a_plugin_without_a_table_gets_the_defaults_and_may_leave_the_settings_out(installed: list[Candidate]) -> None:
    @attrs.frozen
    class Lenient:
        words: list[str] = attrs.field(factory=lambda: ["a"])

    assert loaded(installed, None, settings=lambda: Lenient, transforms=make_tell).transforms[0]("").endswith("['a'])")
    assert loaded(installed, None, settings=lambda: Lenient, transforms=lambda: make_tell(1)).state == "active"


def test_mistakes_fail_the_plugin_alone_and_its_types_are_known_all_the_same(installed: list[Candidate]) -> None:
    found = loaded(installed, table(modle=1, timeout_s="soon"), settings=lambda: Own, transforms=make_tell)
    assert found.state == "failed"
    assert [line.partition(": ")[0] for line in found.reasons] == [f"x.toml, line {line}" for line in (2, 3, 1)]
    assert found.settings["api_key"] == "secret"


def test_a_table_for_a_plugin_that_takes_none_is_a_mistake(installed: list[Candidate]) -> None:
    found = loaded(installed, table(a=1), transforms=lambda: make_tell(1))
    assert (found.state, found.reason) == ("failed", "x.toml, line 2: unknown setting 'a'; there are none")


def test_a_hook_that_fails_tells_no_secret(installed: list[Candidate]) -> None:
    def fail(settings: Any) -> None:
        raise ValueError(f"bad header: Bearer {settings.api_key.reveal()}")

    found = loaded(installed, table(api_key=KEY), settings=lambda: Own, transforms=fail)
    assert found.reason == "xformd_transforms() failed: ValueError: bad header: Bearer ***"


@pytest.mark.parametrize(
    ("hooks", "says"),
    [
        ({"settings": lambda: 5}, "it returns 5, and not an attrs class or a dataclass"),
        ({"settings": lambda: 1 // 0}, "xformd_settings() failed: ZeroDivisionError"),
        ({"setings": lambda: Own}, "unknown hook xformd_setings(); did you mean xformd_settings()?"),
        ({"settings": lambda owl: Own}, "takes settings or no arguments, and xformd_settings() takes no arguments"),
    ],
)
def test_a_wrong_hook_is_named(installed: list[Candidate], hooks: dict[str, Any], says: str) -> None:
    found = loaded(installed, None, transforms=make_tell, **hooks)
    assert found.state == "failed"
    assert says in found.reason


def test_a_table_of_no_plugin_is_an_error_with_its_place(installed: list[Candidate]) -> None:
    installed[:] = [plugin(transforms=make_tell)]
    with pytest.raises(ConfigError) as caught:
        loader.find(Selection(settings={"xformd-owls": table()}))
    assert caught.value.message == (
        "x.toml, line 1: plugin xformd-owls: no such plugin is installed; did you mean 'xformd-owl'?"
    )
    loader.find(Selection(settings={"xformd-owls": table()}, ignore_unknown=True))
