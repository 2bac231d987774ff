"""A package for every way in which a plugin can be broken, and the packages that these must not harm."""

from pathlib import Path

import attrs

from support import packages
from support.packages import Environment, Package

IMPORTED_FOLDER = "XFORMD_TEST_IMPORTED"
"""The environment variable that names a folder, in which each module leaves a file of its name when it is imported."""

NOISE = 'NOISE: {"what": "a plugin prints"}'
"""What the noisy package prints when it is imported."""

_PROLOGUE = f"""\
import os, pathlib
if {IMPORTED_FOLDER!r} in os.environ:
    pathlib.Path(os.environ[{IMPORTED_FOLDER!r}], __name__).touch()
import xformd
"""

_GOOD = """
@xformd.transform(name="{name}", inline=True{more})
def {function}(poem: str) -> str:
    "{name}, from {distribution}."
    return "{distribution}: " + poem
"""

_HOOK = """
@xformd.hookimpl
def xformd_transforms():
    return [{function}]
"""


@attrs.frozen
class Broken:
    """A package ``broken-<kind>`` whose failure must name each reason; ``entry_points`` replaces the installed file."""

    kind: str
    body: str
    reason: tuple[str, ...]
    entry_points: bytes = b""

    @property
    def distribution(self) -> str:
        return f"broken-{self.kind}"

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def package(self) -> Package:
        return Package(self.distribution, {self.kind: self.module}, {f"{self.module}.py": _PROLOGUE + self.body})


def _hook_that(does: str) -> str:
    return f"\n@xformd.hookimpl\ndef xformd_transforms():\n    {does}\n"


def _hook_called(signature: str) -> str:
    return f"\n@xformd.hookimpl\ndef {signature}:\n    return []\n"


def good_module(distribution: str, transform: str, more: str = "", prints: str = "") -> str:
    """Write a module with one transform, which puts the distribution's name before the poem."""
    function = transform.replace("-", "_")
    made = _GOOD.format(name=transform, function=function, distribution=distribution, more=more)
    # Once the way that Python does, once the way that a C library does.
    noise = f"print({prints!r})\nos.write(1, b{prints!r} + b'\\n')\n" if prints else ""
    return _PROLOGUE + noise + made + _HOOK.format(function=function)


def _good(distribution: str, transform: str, entry_point: str = "", more: str = "", prints: str = "") -> Package:
    module = distribution.replace("-", "_")
    source = good_module(distribution, transform, more, prints)
    return Package(distribution, {entry_point or transform: module}, {f"{module}.py": source})


_UNPRINTABLE = """
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

raise Mute()
"""

_HALF = _GOOD.format(name="half", function="half", distribution="broken-generator", more="")
_TWICE = _GOOD.format(name="twice", function="twice", distribution="broken-twice", more="")
_BAD_NAME = _GOOD.format(name="Bad Name!", function="bad", distribution="broken-name", more="")

_BAD_EXAMPLE = """
@xformd.transform(examples=[("a", "a", {"width": {1, 2}})])
def odd(poem: str, *, width: int = 1) -> str:
    return poem
"""
_BAD_OPTIONS = 'xformd.Transform("odd", str.upper, "text", options=("width",))\n'
_INFINITE = """
@xformd.transform
def odd(poem: str, *, ratio: float = float("inf")) -> str:
    return poem
"""

BROKEN = (
    Broken("import", "import nope_not_there\n", ("ModuleNotFoundError", "No module named 'nope_not_there'")),
    Broken("syntax", "def broken(:\n    pass\n", ("SyntaxError", "broken_syntax.py")),
    Broken("exit", "raise SystemExit(3)\n", ("SystemExit: 3",)),
    Broken(
        "misspelled", _hook_called("xformd_transform()"), ("xformd_transform()", "did you mean xformd_transforms()")
    ),
    Broken(
        "raises",
        _hook_that('raise ValueError("no rhyme today")'),
        ("xformd_transforms() failed", "ValueError: no rhyme today"),
    ),
    Broken(
        "generator", _HALF + _hook_that("yield half; raise OSError('the ink ran out')"), ("OSError: the ink ran out",)
    ),
    Broken("none", _hook_that("return None"), ("xformd_transforms() returned None",)),
    Broken("name", _BAD_NAME + _HOOK.format(function="bad"), ("'Bad Name!' is not a valid transform name",)),
    Broken(
        "signature",
        "@xformd.transform\ndef crooked(poem: str, width: int = 1) -> str:\n    return poem\n",
        ("transform 'crooked'", "options are keyword-only", "width"),
    ),
    Broken("argument", _hook_called("xformd_transforms(rhyme)"), ("bad hook", "rhyme", "takes no arguments")),
    Broken("value", _hook_that('yield "a text"'), ("returned a str, not a Transform",)),
    Broken("hookless", "", ("no hook", "xformd_transforms()")),
    Broken("mute", _UNPRINTABLE, ("import of broken_mute failed: Mute",)),
    Broken("metadata", _HOOK.format(function=""), ("cannot read its entry_points.txt",), b"[xformd]\nnonsense\n"),
    Broken("encoding", _HOOK.format(function=""), ("cannot read its entry_points.txt",), b"[xformd]\n\xff = x\n"),
    Broken("pointer", "", ("import of !! failed",), b"[xformd]\npointer = !!\n"),
    Broken("interrupt", "raise KeyboardInterrupt\n", ("KeyboardInterrupt",)),
    Broken("single", _HALF + _hook_that("return half"), ("returned a single Transform; put it in a list",)),
    Broken("async", "\n@xformd.hookimpl\nasync def xformd_transforms():\n    return []\n", ("must not be async",)),
    Broken("example", _BAD_EXAMPLE + _HOOK.format(function="odd"), ("option 'width' takes a whole number",)),
    Broken("options", _BAD_OPTIONS, ("options must be xformd.Option values",)),
    Broken("infinite", _INFINITE, ("the default of option 'ratio', inf, is not a number",)),
    Broken("twice", _TWICE + _hook_that("return [twice, twice]"), ("'twice' twice",)),
)

HEALTHY = _good("healthy-dist", "healthy", more=', examples=[("Owl", "healthy-dist: Owl")]')
NOISY = _good("noisy-dist", "noisy", prints=NOISE)
NAMELESS = tuple(_good(f"nameless-{number}", f"nameless-{number}") for number in ("one", "two"))
TWINS = (_good("twin-one", "first-twin", "twin"), _good("twin-two", "second-twin", "twin"))
RIVALS = (_good("rival-one", "ambiguous"), _good("rival-two", "ambiguous"))
USURPER = _good("usurper", "cummingsify")

PACKAGES = (HEALTHY, NOISY, *TWINS, *RIVALS, USURPER, *(broken.package for broken in BROKEN))


def install_all(folder: Path) -> Environment:
    """Build and install all of them together in a fresh virtual environment."""
    wheels = [
        packages.build_wheel(packages.write(package, folder / "source"), folder) for package in (*PACKAGES, *NAMELESS)
    ]
    environment = packages.create_environment(folder / "environment")
    packages.install(environment, wheels)
    for broken in BROKEN:
        if broken.entry_points:
            metadata = environment.site_packages / f"{broken.module}-{packages.VERSION}.dist-info"
            (metadata / "entry_points.txt").write_bytes(broken.entry_points)
    for package in NAMELESS:
        folder = environment.site_packages / f"{package.distribution.replace('-', '_')}-{packages.VERSION}.dist-info"
        (folder / "METADATA").unlink()
    return environment
