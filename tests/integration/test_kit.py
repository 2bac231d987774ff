"""What ``xformd new`` makes, installed as its author would: each kind's examples and tests pass on a server."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import packages
from xformd.kit.new import KINDS, make_plugin

pytestmark = pytest.mark.slow

MORE = """
from hypothesis import given, settings
from hypothesis import strategies as st
from xformd.kit.strategies import options, poems
from xformd_a_text import a_text


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_poem_is_answered(xform, data):
    poem, chosen = data.draw(poems(a_text)), data.draw(options(a_text))
    assert xform("a-text", poem, **chosen) == a_text(poem, **chosen)


def test_the_server_has_http_and_a_log(xformd_server):
    assert xformd_server.http.startswith("http://127.0.0.1:")
    assert xformd_server.address.startswith("127.0.0.1:")
    assert isinstance(xformd_server.log, str)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> packages.Environment:
    """An environment with a plugin of each kind, from its wheel."""
    folder = tmp_path_factory.mktemp("kit")
    environment = packages.create_environment(folder / "environment")
    wheels = []
    for kind in KINDS:
        root, *_ = make_plugin(f"a-{kind}", kind, folder)
        sdist = pytest.importorskip("hatchling.builders.sdist").SdistBuilder(str(root))
        (packed,) = sdist.build(directory=str(folder / "dist"), versions=["standard"])
        unpacked = folder / "unpacked" / kind
        unpacked.mkdir(parents=True)
        subprocess.run(["tar", "-xf", packed, "-C", unpacked, "--strip-components=1"], check=True)
        wheels.append(packages.build_wheel(unpacked, folder / "dist"))
    packages.install(environment, wheels)
    return environment


def run_pytest(environment: packages.Environment, folder: Path, *arguments: str) -> tuple[int, str]:
    command = [
        str(environment.python),
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(folder),
        *arguments,
    ]
    variables = packages.environ() | {"XFORMD_SERVER": "127.0.0.1:1", "XFORMD_STRICT": "nonsense"}  # of no test
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_examples_and_tests_of_each_kind_pass(environment: packages.Environment) -> None:
    """All at once, on one server: that is what takes the time."""
    folder = environment.folder.parent
    shutil.rmtree(folder / "unpacked")
    named = "".join(f"    xformd-a-{kind}\n" for kind in KINDS)
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = --xformd\nxformd_plugins =\n{named}")
    folders = [str(folder / f"xformd-a-{kind}") for kind in KINDS]
    status, output = run_pytest(
        environment, folder, "-v", "--import-mode=importlib", "-c", str(folder / "pytest.ini"), *folders
    )
    assert status == 0, output
    for kind in KINDS:
        assert len(re.findall(rf"a-{kind}\(.*PASSED", output)) == (3 if kind in ("text", "batch") else 2)
        assert len(re.findall(rf"test_a_{kind}.py::.*PASSED", output)) == 2


def test_an_example_that_does_not_hold_is_told_in_a_line(environment: packages.Environment, tmp_path: Path) -> None:
    root, *_ = make_plugin("wrong", "text", tmp_path)
    module = root / "xformd_wrong.py"
    module.write_text(module.read_text().replace('"| The Owl"', '"* The Owl"').replace('("", "")', '("", 3)'))
    status, output = run_pytest(environment, root)
    assert status == 4  # it cannot even be loaded, and is not installed
    assert "pip install -e ." in output
    other = make_plugin("other", "text", tmp_path)[0]
    module = other / "xformd_other.py"
    module.write_text(module.read_text().replace('"| The Owl"', '"* The Owl"'))
    packages.install(environment, [packages.build_wheel(other, tmp_path / "dist")])
    (other / "tests" / "test_more.py").write_text(MORE.replace("a_text", "other").replace("a-text", "other"))
    status, output = run_pytest(environment, other)
    assert status == 1
    assert "other('The Owl', prefix='| ') gave '| The Owl', not '* The Owl'" in output
    assert "1 failed, 6 passed" in output, output


def test_a_failing_test_shows_itself_and_how_to_see_more(environment: packages.Environment, tmp_path: Path) -> None:
    root, *_ = make_plugin("buggy", "text", tmp_path)
    module = root / "xformd_buggy.py"
    module.write_text(module.read_text().replace('"".join(', "poem.nonsense("))
    packages.install(environment, [packages.build_wheel(root, tmp_path / "dist")])
    status, output = run_pytest(environment, root, "-rN")  # the summary is longer where CI is set
    assert status == 1
    assert output.count("'xformd run --traceback buggy' with this poem shows the rest") == 4  # a test and 3 examples
    assert "xformd/blocking" not in output
