"""The page for operators lists every setting with its default."""

import re
from pathlib import Path

import attrs

from xformd.config import TABLE, configure
from xformd.limits import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
ROW = re.compile(r"^\| `(?P<name>\w+)`[^|]*\| (?P<default>[^|]+) \|", re.MULTILINE)


def shown(name: str, default: float | None) -> str:
    """Return a default as the page writes it."""
    if default is None:
        return "none"
    if not name.endswith("_bytes"):
        return f"{default:,.0f}"
    mib = default / 2**20
    return f"{mib / 1024:.0f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def test_the_table_has_every_limit_with_its_default() -> None:
    table = PAGE.partition("\n## Limits\n")[2].partition("\n## ")[0]
    assert dict(ROW.findall(table)) == {field.name: shown(field.name, field.default) for field in attrs.fields(Limits)}


def test_the_page_names_every_other_setting() -> None:
    limits = {field.name for field in attrs.fields(Limits)}
    section = PAGE.partition("\n## Settings\n")[2].partition("\n## ")[0]
    sentence = section.partition("Apart from the limits, the settings are ")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", sentence) == [name for name in TABLE if name not in limits]


def test_the_example_is_a_valid_file(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "xformd.toml"
    file.write_text(example)
    settings = configure(file).settings
    assert (settings.workers, *settings.inline, *settings.isolate) == (4, "markdown", "shout")
    assert settings.limits.max_request_bytes == 65_536
    assert settings.selection.preferred == {"shout": "xformd-shout"}
