"""Commands as transforms: how a table is read, what its mistakes are called, and what the program gets and gives."""

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from xformd.errors import BadOptions, ConfigError, GibberishError, TooLarge, TransformFailed
from xformd.plugins import loader
from xformd.plugins.command import make_transform
from xformd.plugins.definition import Example, Transform
from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table

TEXT = {"accepts": "text/plain", "produces": "text/plain"}


def table(**values: Any) -> Table:
    """Return a table whose keys stand on lines of their own, below its header."""
    places = {"": "x.toml, line 1"} | {key: f"x.toml, line {line}" for line, key in enumerate(values, 2)}
    return Table(values, places, "/bin")


def made(*command: str, **values: Any) -> Transform:
    return make_transform("example", table(command=[*command], **values))


def python(code: str, *arguments: str, **values: Any) -> Transform:
    """Make a transform of a program in Python."""
    return made(sys.executable, "-I", "-S", "-c", code.replace("{", "{{").replace("}", "}}"), *arguments, **values)


def mistakes(**values: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make_transform("example", table(**values))
    return caught.value.details


# What the program gets and gives.


def test_the_poem_is_standard_input_and_standard_output_is_the_result() -> None:
    assert made("cat")(b"\xff\0poem") == b"\xff\0poem"
    assert made("tr", "a-z", "A-Z", **TEXT)("owl\u00e9") == "OWL\u00e9"
    assert made("true")(b"poem") == b""


def test_both_can_be_files_whose_suffixes_follow_their_types() -> None:
    copy = made("cp", "{poem}", "{result}", accepts="text/markdown", produces="application/pdf")
    assert copy("# Owl\u00e9") == "# Owl\u00e9".encode()
    named = made("echo", "{poem}", "{result}", accepts=["image/png", "image/*"], produces="text/html")
    with pytest.raises(TransformFailed, match="the command of example has not written"):
        named(b"")
    shown = made("sh", "-c", 'echo "$@" >"$2"; cat', "sh", "{poem}", "{result}", accepts="image/png")(b"x")
    poem, result = map(Path, bytes(shown).decode().split())
    assert (poem.name, result.name) == ("poem.png", "result.bin")
    assert poem.parent == result.parent
    assert not poem.parent.exists()


def test_a_value_is_one_argument_or_a_part_of_one() -> None:
    show = python(
        "import sys; print(sys.argv[1:])",
        *("{a}", "--x={a}{b}", "{{a}}", "{flag}", "{n}", "{x}", "$HOME;*"),
        options={"a": "", "b": "b", "flag": True, "n": 3, "x": 0.5},
    )
    hostile = "a b' \"$(id);\n*{b}"
    assert eval(show(b"", a=hostile)) == [hostile, f"--x={hostile}b", "{a}", "true", "3", "0.5", "$HOME;*"]
    assert eval(show(b"", flag=False))[3] == "false"


@pytest.mark.parametrize(
    ("argument", "value", "is_refused"),
    [
        ("{a}", "-rf", True),
        ("{b}{a}", "-x", True),
        ("{a}-x", "", True),
        ("--x={a}", "-x", False),
        ("x{a}", "-x", False),
        ("{a}", "x-", False),
    ],
)
def test_a_value_that_could_be_an_option_is_refused_unless_it_is_allowed(
    argument: str, value: str, is_refused: bool
) -> None:
    options = {"a": "a", "b": ""} if "{b}" in argument else {"a": "a"}
    echo = made("printf", "%s", argument, options=options)
    if is_refused:
        with pytest.raises(BadOptions, match=r"the value of option '[ab]' must not begin with '-'"):
            echo(b"", a=value)
    else:
        assert value.encode() in bytes(echo(b"", a=value))
    allowed = {name: {"default": "", "allow_dash": True} for name in options}
    assert value.encode() in bytes(made("printf", "%s", "--", argument, options=allowed)(b"", a=value))


def test_what_the_author_has_written_may_be_an_option() -> None:
    echo = made("printf", "%s", "{a}{b}", options={"a": "", "b": {"choices": ["-v", "-q"], "default": "-q"}})
    assert (echo(b""), echo(b"", b="-v")) == (b"-q", b"-v")
    assert made("printf", "%s", "{a}", options={"a": "-1"})(b"") == b"-1"


def test_a_negative_number_could_be_an_option_too() -> None:
    with pytest.raises(BadOptions):
        made("seq", "{n}", "3", options={"n": 1})(b"", n=-1)


def test_a_null_character_is_refused() -> None:
    with pytest.raises(BadOptions, match="must not contain a null character"):
        made("echo", "{a}", options={"a": ""})(b"", a="x\0y")


def test_exit_statuses_say_whose_fault_it_is() -> None:
    exits = made("sh", "-c", 'exit "$1"', "sh", "{status}", options={"status": 0}, gibberish_statuses=[3, 4])
    assert exits(b"") == b""
    with pytest.raises(GibberishError, match=r"^example rejects this poem: its command ended with exit status 4$"):
        exits(b"", status=4)
    with pytest.raises(TransformFailed, match=r"^the command of example ended with exit status 5$"):
        exits(b"", status=5)
    with pytest.raises(TransformFailed, match=r"^the command of example was killed by SIGSEGV$"):
        made("sh", "-c", "kill -SEGV $$")(b"")


def test_standard_error_is_never_a_caller_s(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TransformFailed) as caught:
        made("sh", "-c", "echo my-password >&2; exit 1")(b"")
    assert "password" not in str(caught.value)
    assert capfd.readouterr().err == "my-password\n"
    assert made("sh", "-c", 'echo noise; echo result >"$1"', "sh", "{result}")(b"") == b"result\n"
    assert capfd.readouterr().err == "noise\n"


def test_a_command_that_does_not_read_and_one_that_reads_more_are_fine() -> None:
    assert made("head", "-c", "1")(b"x" * 1_000_000) == b"x"
    assert made("sh", "-c", "exec 0<&-; echo done")(b"x" * 1_000_000) == b"done\n"
    assert made("sh", "-c", "cat; cat; read x || echo end")(b"poem") == b"poemend\n"


def test_there_is_no_terminal_to_ask_at() -> None:
    with pytest.raises(TransformFailed):
        made("sh", "-c", "echo password: >/dev/tty")(b"")


def test_a_plugin_s_settings_are_not_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFORMD_PLUGIN_XFORMD_X__API_KEY", "secret")
    monkeypatch.setenv("OWL", "hoot")
    environment = bytes(made("env")(b""))
    assert b"OWL=hoot" in environment
    assert b"API_KEY" not in environment


def test_what_it_leaves_behind_keeps_nobody_waiting() -> None:
    assert made("sh", "-c", "sleep 1000 & echo done")(b"") == b"done\n"


def test_a_result_that_is_no_utf8_is_no_text() -> None:
    latin = ["printf", r"caf\351"]
    with pytest.raises(TransformFailed, match=r"^the result of example is not UTF-8$"):
        made(*latin, produces="text/plain")(b"")
    assert made(*latin, produces="text/plain; charset=latin-1")(b"") == b"caf\xe9"


def test_endless_output_ends_at_the_limit() -> None:
    with pytest.raises(TooLarge, match="the result of example has more than 10485760 bytes; the limit is 10485760"):
        made("yes")(b"")
    with pytest.raises(TooLarge, match="the result of example has 10485761 bytes"):
        made("sh", "-c", 'head -c 10485761 /dev/zero >"$1"', "sh", "{result}")(b"")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ('ln -s /etc/passwd "$1"', "is a link"),
        ('mkdir "$1"', "not a regular file"),
        ('mkfifo "$1"', "not a regular file"),
        ("true", "has not written {result}"),
    ],
)
def test_a_result_must_be_a_file_in_the_folder(make: str, says: str) -> None:
    with pytest.raises(TransformFailed, match=says):
        made("sh", "-c", make, "sh", "{result}")(b"")


def test_a_program_that_has_gone_is_named_as_the_system_names_it(tmp_path: Path) -> None:
    program = tmp_path / "owl"
    program.write_text("#!/bin/sh\necho owl\n")
    program.chmod(0o700)
    owl = made(str(program))
    assert owl(b"") == b"owl\n"
    program.unlink()
    with pytest.raises(TransformFailed, match=r"^the command of example cannot be started: No such file or directory$"):
        owl(b"")


# Tables.


def test_a_table_says_everything_about_a_transform() -> None:
    transform = made(
        *("sort", "--key={key}", "{order}", "--field-separator={separator}"),
        options={
            "key": {"default": 1, "min": 1, "max": 9, "help": "which field"},
            "order": {"choices": ["up", "down"], "default": "up"},
            "separator": {"type": "str"},
        },
        summary="Sort lines.",
        accepts=["text/csv", "text/plain"],
        produces="text/csv",
        timeout="20s",
        memory="10MiB",
        deterministic=True,
        gibberish_statuses=[2],
        examples=[{"poem": "b\na\n", "result": "a\nb\n", "options": {"separator": ","}}],
    )
    assert (transform.kind, transform.result_kind) == ("text", "text")
    assert (transform.accepts, transform.produces) == (("text/csv", "text/plain"), "text/csv")
    assert (transform.timeout_s, transform.memory_bytes, transform.deterministic) == (20.0, 10 * 2**20, True)
    assert transform.summary == "Sort lines."
    assert transform.examples == (Example("b\na\n", "a\nb\n", {"separator": ","}),)
    key, order, separator = transform.options
    assert (key.type, key.default, key.takes, key.description) == (
        "int",
        1,
        "a whole number from 1 to 9",
        "which field",
    )
    assert (order.type, order.choices, order.default) == ("choice", ("up", "down"), "up")
    assert separator.required


def test_options_take_their_types_from_their_defaults_and_choices() -> None:
    options = {"a": 1, "b": 0.5, "c": True, "d": "x", "e": {"choices": [1, 2], "default": 2}, "f": {}}
    transform = made("echo", "{a}{b}{c}{d}{e}{f}", options=options)
    assert [option.type for option in transform.options] == ["int", "float", "bool", "str", "choice", "str"]
    assert transform(b"", f="") == b"10.5truex2\n"


def test_without_types_a_command_takes_and_makes_any_bytes() -> None:
    transform = made("cat", examples=[{"poem": "\u00e9", "result": "\u00e9"}])
    assert (transform.kind, transform.result_kind, transform.accepts) == (
        *("bytes", "bytes"),
        ("application/octet-stream",),
    )
    assert transform.examples == (Example("\u00e9".encode(), "\u00e9".encode()),)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"command": "cat"}, "line 2: command: it takes a list of strings, such as ['pandoc', '--to=docx']"),
        ({"command": []}, "line 2: command: it begins with the name of a program, which no option can set"),
        ({"command": [""]}, "line 2: command: it begins with the name of a program, which no option can set"),
        ({"command": ["{a}"]}, "line 2: command: it begins with the name of a program, which no option can set"),
        ({"command": ["cat", "a\0"]}, "line 2: command: it takes a list of strings, such as ['pandoc', '--to=docx']"),
        ({"command": ["cat", "{x}"]}, "line 2: command: no option is called {x}; there are none"),
        (
            {"command": ["cat", "{to"]},
            "line 2: command: expected '}' before end of string; {{ and }} stand for the characters",
        ),
        (
            {"command": ["cat", "}"]},
            "line 2: command: Single '}' encountered in format string; {{ and }} stand for the characters",
        ),
        (
            {"command": ["cat", "{a!r}"]},
            "line 2: command: in braces stands the name of an option; for the characters write {{ and }}",
        ),
        ({"summary": "x"}, "line 1: command is missing: set it"),
        ({"command": ["cat"], "acepts": "x"}, "line 3: unknown setting 'acepts'; did you mean 'accepts'?"),
        ({"command": ["cat"], "options": {"a": 1}}, "line 3: option 'a': no argument of command has {a}"),
        (
            {"command": ["cat", "{a}"], "options": {"a": {"defualt": 1}}},
            "line 3: option 'a': unknown setting 'defualt'; did you mean 'default'?",
        ),
        ({"command": ["cat", "{a}"], "options": {"a": [1]}}, "line 3: option 'a': option 'a': unknown type 'list'"),
        (
            {"command": ["cat", "{a}"], "options": {"a": {"min": 2, "default": 1}}},
            "line 3: option 'a': the default of option 'a', 1, is not a whole number from 2",
        ),
        (
            {"command": ["cat", "{poem}"], "options": {"poem": 1}},
            "line 3: options: poem stands for a file: call the option something else",
        ),
        ({"command": ["cat"], "accepts": "html"}, "line 3: accepts must be a media type such as 'text/html'"),
        ({"command": ["cat"], "produces": "text/*"}, "line 3: produces must look like 'text/html'"),
        ({"command": ["cat"], "timeout": "soon"}, "line 3: timeout: invalid duration 'soon': try 0.5, 30 or 5min"),
        ({"command": ["cat"], "memory": 0}, "line 3: memory: invalid size 0: try 100000 or 10MiB"),
        ({"command": ["cat"], "deterministic": 1}, "line 3: deterministic takes true or false, not 1"),
        ({"command": ["cat"], "gibberish_statuses": ["x"]}, "line 3: gibberish_statuses takes a"),
        ({"command": ["cat"], "examples": ["x"]}, "line 3: examples: each has a poem and a result: {"),
        ({"command": ["cat"], "examples": [{"poem": "x"}]}, "line 3: examples: each has a poem and a result: {"),
        ({"command": ["no-such-owl"]}, "line 2: command: program 'no-such-owl' is not installed, or not in PATH"),
        ({"command": ["no-such-owl -x"]}, "in PATH; there is no shell: write each argument as a string of its own"),
        ({"command": ["./no-such-owl"]}, "line 2: command: there is no program /bin/no-such-owl"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(values: dict[str, Any], says: str) -> None:
    (mistake,) = mistakes(**values)
    assert mistake.startswith("x.toml, line ")
    assert says in mistake


def test_several_mistakes_are_all_told() -> None:
    found = mistakes(command=["cat", "{x}"], options={"a": {"max": "b"}, "b": {"hlep": ""}})
    assert [line.partition(": ")[0] for line in found] == ["x.toml, line 3", "x.toml, line 3", "x.toml, line 2"]


def test_a_relative_program_is_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for folder, words in ((tmp_path, "beside"), (tmp_path / "bin", "on the path")):
        (folder / "owl").write_text(f"#!/bin/sh\necho {words}\n")
        (folder / "owl").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for program, says in (("./owl", b"beside\n"), ("owl", b"on the path\n")):
        values = Table({"command": [program]}, {"": "x.toml, line 1"}, str(tmp_path))
        assert make_transform("example", values)(b"") == says


# As plugins.


def test_a_bad_table_takes_no_other_away_and_a_changed_one_is_another_version() -> None:
    commands = {"good": table(command=["cat"]), "bad": table(command=["no-such-owl"]), "Up": table(command=["cat"])}
    registry = loader.load(Selection(distributions=frozenset(), commands=commands))
    assert registry.resolve("good").transform(b"a") == b"a"
    assert {plugin.name for plugin in registry.with_state("failed")} == {"transform.bad", "transform.Up"}
    (bad, up) = sorted(registry.with_state("failed"), key=lambda plugin: plugin.name, reverse=True)
    assert bad.reason.startswith("x.toml, line 2: command: program 'no-such-owl' is not installed")
    assert up.reason.startswith("x.toml, line 1: 'Up' is not a valid transform name")
    version = registry.resolve("good").plugin.version
    again = loader.load(Selection(distributions=frozenset(), commands={"good": table(command=["cat"])}))
    changed = loader.load(Selection(distributions=frozenset(), commands={"good": table(command=["cat", "-"])}))
    assert again.resolve("good").plugin.version == version != changed.resolve("good").plugin.version


def test_a_name_that_a_built_in_has_stays_its_own_unless_the_command_is_preferred() -> None:
    selection = Selection(distributions=frozenset(), commands={"upper": table(command=["cat"])})
    registry = loader.load(selection)
    assert registry.resolve("upper").plugin.distribution == "xformd"
    assert str(registry.conflicts[0]).startswith("transform upper is provided by transform.upper ")
