"""README, docs and the example plugins' pages, executed as their reader would.

``console`` blocks run line by line in bash, and must print exactly what the page shows. ``python`` blocks run as they
stand. Files that a page shows in full are the files that are installed.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT

import attrs
import pytest

from support import packages
from support.poems import peer, sends
from support.processes import DEADLINE_S, SLOW, serving

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs")]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("plugins-example/*/README.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_BLOCK = re.compile(r"`([\w./]+)`[^`]*?:\n\n```(?:python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"console", "go", "js", "json", "python", "sh", "text", "toml"}  # test_other_languages.py runs go and js
POETRY, CLIENT, PYTHON, PLUGINS = (ROOT / "docs" / f"{name}.md" for name in ("poetry", "client", "python", "plugins"))
REACT = "from twisted.internet.task import react\nreact(lambda _: transformed('The Owl!').addCallback(print))\n"
# Twisted keeps a descriptor of /dev/null in reserve to its end, which is no business of a page.
STRICT_PYTHON = ["python", "-W", "error", "-W", "ignore::ResourceWarning", "-c"]


@attrs.frozen
class Reader:
    """A reader who follows the pages, with what they say to install."""

    environment: packages.Environment
    server: str
    http: str

    def run(self, command: list[str], folder: Path, **extra: str) -> str:
        """Run a command and return all that it prints; ``extra`` adds to its environment."""
        variables = {
            **packages.environ(),
            "PATH": f"{self.environment.python.parent}:/usr/bin:/bin",
            "XFORMD_SERVER": self.server,
            "SERVER": self.http,
            "COLUMNS": "200",
            **extra,
        }
        done = subprocess.run(
            command, cwd=folder, env=variables, stdout=PIPE, stderr=STDOUT, timeout=DEADLINE_S, check=False
        )
        return SLOW.sub(b"", done.stdout).decode()


def files_of(page: Path) -> dict[str, str]:
    """Return the files that a page shows in full, by the names that it gives them."""
    return dict(NAMED_BLOCK.findall(page.read_text()))


def blocks_of(page: Path, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language == kind]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who wrote the README's plugin from the README alone, and installed it and the examples with pip."""
    folder = tmp_path_factory.mktemp("reader")
    environment = packages.create_environment(folder / "environment")
    written = folder / "xformd-whisper"
    written.mkdir()
    for name, text in files_of(ROOT / "README.md").items():
        (written / name).write_text(text)
    sources = [written, *sorted(ROOT.glob("plugins-example/xformd-*"))]
    packages.install(environment, [packages.build_wheel(source, folder) for source in sources])
    script = environment.python.parent / "xformd"
    script.write_text(f"#!{environment.python}\nfrom xformd.cli import main\nmain()\n")
    script.chmod(0o755)
    http = ("--http", "tcp:0:interface=127.0.0.1", "--jobs-dir", str(folder / "jobs"))
    with serving(folder, "--plugins", *http, command=(str(environment.python), "-m", "xformd")) as server:
        assert not [line for line in server.greeting if line.startswith("failed")]
        yield Reader(environment, server.address, server.http)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder to follow a page in, with the poem that the plugins' pages speak of."""
    (tmp_path / "poem.txt").write_text("The Owl and the Pussy-cat went to sea\n")
    return tmp_path


def steps_of(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block and what it must print."""
    command: str | None = None
    expected = ""
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            if command is not None:
                yield command, expected
            command, expected = line[2:].rstrip("\n"), ""
        else:
            expected += line
    assert command is not None
    yield command, expected


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "console")], ids=name_of)
def test_each_command_prints_what_the_page_shows(reader: Reader, desk: Path, page: Path) -> None:
    for name, text in files_of(page).items():
        (desk / name).parent.mkdir(parents=True, exist_ok=True)
        (desk / name).write_text(text)
    for block in blocks_of(page, "console"):
        for command, expected in steps_of(block):
            there = command.replace("http://127.0.0.1:11080", reader.http)
            assert (command, reader.run(["bash", "-c", there], desk)) == (command, expected)


def test_the_pages_that_show_commands_are_found() -> None:
    shown = {name_of(page) for page in PAGES if blocks_of(page, "console")}
    assert {"README.md", "docs/cli.md", "docs/plugins.md", "plugins-example/xformd-shout/README.md"} <= shown


@pytest.mark.parametrize(
    ("page", "number", "more", "printed"),
    [
        (CLIENT, 0, "", blocks_of(CLIENT, "text")[0]),
        (PYTHON, 0, "", "ONE TWO\nTHREE\n"),
        (PYTHON, 1, "", blocks_of(PYTHON, "text")[0]),
        (PYTHON, 2, "", blocks_of(PYTHON, "text")[1]),
        (ROOT / "README.md", 1, REACT, "the owl..\n"),
        (ROOT / "README.md", 2, "", "b'15:here is my poem,'\n"),
    ],
)
def test_a_program_prints_what_its_page_says(
    reader: Reader, desk: Path, page: Path, number: int, more: str, printed: str
) -> None:
    host, _, port = reader.server.partition(":")
    program = blocks_of(page, "python")[number].replace('"127.0.0.1", 11000', f'"{host}", {port}')
    assert reader.run([*STRICT_PYTHON, f"{program}\n{more}"], desk) == printed


@pytest.mark.parametrize("number", range(len(blocks_of(POETRY, "python"))))
def test_the_poetry_page_prints_what_it_says(reader: Reader, desk: Path, number: int) -> None:
    pairs = list(zip(blocks_of(POETRY, "python"), blocks_of(POETRY, "text"), strict=True))
    program, expected = pairs[number]
    with peer(sends(b"The OWL and the Pussy-cat\n")) as first, peer(sends(b"went to SEA\n")) as second:
        servers = f"{first.address} {second.address}"
        assert reader.run([*STRICT_PYTHON, program], desk, POEM_SERVERS=servers) == expected


def test_the_plugin_page_shows_the_files_that_are_installed() -> None:
    folder = ROOT / "plugins-example" / "xformd-shout"
    shown = [block for kind in ("python", "toml") for block in blocks_of(folder / "README.md", kind)]
    for name in ("xformd_shout.py", "pyproject.toml", "tests/test_shout.py"):
        assert (folder / name).read_text() in shown


def test_the_transforms_of_the_plugin_page_hold_their_examples(reader: Reader, desk: Path) -> None:
    snippets = blocks_of(PLUGINS, "python")
    assert len(snippets) >= 6
    for number, snippet in enumerate(snippets):
        names = re.findall(r"^@xformd.transform.*?^(?:async )?def (\w+)\(", snippet, re.MULTILINE | re.DOTALL)
        hook = f"\n@xformd.hookimpl\ndef xformd_transforms():\n    return {[*names]}\n".replace("'", "")
        folder = desk / f"snippet{number}"
        folder.mkdir()
        (folder / "snippet.py").write_text(snippet + ("" if "xformd_transforms" in snippet else hook))
        printed = reader.run(["xformd", "check", "--plugins=none", "--plugins-dir", str(folder), "snippet.py"], desk)
        assert re.fullmatch(r"ok      [a-z-]+: (no|\d) examples?\n", printed), snippet


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_executed_or_marked_as_not(page: Path) -> None:
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= KINDS
