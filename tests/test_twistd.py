"""What the arguments of ``twistd xformd`` mean."""

from pathlib import Path

import pytest
from twisted.python.usage import UsageError

from xformd.config import TABLE, Settings
from xformd.errors import ConfigError
from xformd.twistd import Options


def settings(*words: str, **environment: str) -> Settings:
    options = Options()
    options.parseOptions(words)
    return options.settings(environment)


def test_without_arguments_it_has_the_defaults_of_serve() -> None:
    assert settings() == Settings()


def test_every_setting_has_its_flag_but_that_of_the_log_which_is_twistds() -> None:
    options = Options()
    assert {f"{setting.flag.removeprefix('--')}" for setting in TABLE.values()} - {"log-format"} <= {
        name.removesuffix("=") for name in options.longOpt
    }


def test_arguments_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("max_queue = 1\nmax_in_flight = 1\nworkers = 1\n")
    made = settings("--config", str(file), "--workers=3", XFORMD_MAX_QUEUE="2", XFORMD_WORKERS="2")
    assert (made.limits.max_queue, made.limits.max_in_flight, made.workers) == (2, 1, 3)
    assert settings(XFORMD_CONFIG=str(file)).workers == 1


def test_what_may_be_repeated_is_collected_and_folders_are_found_from_anywhere() -> None:
    made = settings(
        *("--listen", "unix:a", "--listen", "unix:b", "--host", "127.0.0.2", "--plugins", "owl,cat", "--strict"),
        *("--plugins-dir", "here", "--plugins-dir", "/there", "--block", "dog", "--inline=up", "--isolate=down"),
        *("--prefer", "a=owl", "--prefer", "b=cat"),
    )
    assert made.listen == ("tcp:11000:interface=127.0.0.2:backlog=1024", "unix:a", "unix:b")
    selection = made.selection
    assert selection.directories == (Path.cwd() / "here", Path("/there"))
    assert (selection.distributions, selection.blocked, selection.strict) == ({"owl", "cat"}, {"dog"}, True)
    assert selection.preferred == {"a": "owl", "b": "cat"}
    assert (made.inline, made.isolate) == ({"up"}, {"down"})
    assert settings("--port", "0").listen == ("tcp:0:interface=127.0.0.1:backlog=1024",)


def test_what_makes_no_sense_is_said() -> None:
    with pytest.raises(ConfigError, match="--max-queue takes a whole number from 1, not 0"):
        settings("--max-queue", "0")
    with pytest.raises(UsageError, match="type enforcement"):
        settings("--port", "x")
