"""The package keeps its promises about itself."""

from importlib.metadata import metadata, requires
from pathlib import Path

import xformd


def test_the_required_dependencies_are_these_four_alone() -> None:
    required = [line for line in requires("xformd") or () if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {"twisted", "pluggy", "click", "attrs"}
    assert "pluggy>=1.6" in required


def test_the_package_says_what_it_is() -> None:
    described = metadata("xformd")
    assert described["License-Expression"] == "MIT"
    assert described["Requires-Python"] == ">=3.11"
    assert described["Version"] == xformd.__version__
    assert (Path(xformd.__file__).parent / "py.typed").exists()
