"""How commands read what is given more than once."""

from collections.abc import Mapping

import click
import pytest
from click.testing import CliRunner

from xformd.commands.poem_options import PoemOptions, poem_options
from xformd.spec import build


@click.command()
@poem_options
def show(spec: str, poems: PoemOptions, options: Mapping[str, object]) -> None:
    """Print the spec."""
    click.echo(build(spec, options))


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (["width=7"], "odd:width=7"),
        (["tags=a", "width=7", "tags=b"], "odd:tags=a%2Cb,width=7"),
        (["tags=a,b", "tags=c"], "odd:tags=%5B%22a%2Cb%22%2C%20%22c%22%5D"),
    ],
)
def test_an_option_that_is_repeated_has_the_items_of_a_list(given: list[str], spec: str) -> None:
    shown = CliRunner().invoke(show, ["odd", *(word for each in given for word in ("-o", each))])
    assert shown.output == f"{spec}\n"
