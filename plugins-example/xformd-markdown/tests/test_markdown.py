"""What the transform adds to markdown-it-py: working options, and a result that is safe and complete."""

from typing import get_args

import pytest
from xformd_markdown import MAX_NESTING, Preset, markdown

import xformd

# Some presets of markdown-it pass raw HTML by default, so safety is tested with each.
with_every_preset = pytest.mark.parametrize("preset", get_args(Preset))


def test_the_result_is_declared_as_html() -> None:
    assert markdown.produces == "text/html"


@with_every_preset
@pytest.mark.parametrize("poem", ["<script>alert(1)</script>", "an <script>alert(1)</script> owl"])
def test_raw_html_is_escaped(preset: Preset, poem: str) -> None:
    result = markdown(poem, preset=preset)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in result
    assert "<script" not in result


@with_every_preset
def test_raw_html_passes_on_request(preset: Preset) -> None:
    assert markdown("<script>alert(1)</script>\n", preset=preset, html=True) == "<script>alert(1)</script>\n"


@with_every_preset
@pytest.mark.parametrize(
    "poem",
    [
        "[owl](javascript:alert(1))",
        "[owl](JavaScript&colon;alert(1))",
        "![owl](javascript:alert(1))",
        "<javascript:alert(1)>",
        "[owl][1]\n\n[1]: javascript:alert(1)",
        "[owl](vbscript:alert)",
        "[owl](data:text/html,alert)",
    ],
)
def test_a_link_that_would_run_a_script_stays_text(preset: Preset, poem: str) -> None:
    result = markdown(poem, preset=preset)
    assert "href=" not in result
    assert "src=" not in result


@with_every_preset
def test_a_link_cannot_add_an_attribute(preset: Preset) -> None:
    result = markdown('[owl](<sea"onclick=1> "pea\\"onclick=1")', preset=preset)
    assert result == '<p><a href="sea%22onclick=1" title="pea&quot;onclick=1">owl</a></p>\n'


def test_the_options_of_one_call_do_not_reach_the_next() -> None:
    assert markdown("a <b>cat", html=True) == "<p>a <b>cat</p>\n"
    assert markdown("a <b>cat") == "<p>a &lt;b&gt;cat</p>\n"


def test_the_link_definitions_of_one_poem_do_not_reach_the_next() -> None:
    assert markdown("[owl]\n\n[owl]: /sea") == '<p><a href="/sea">owl</a></p>\n'
    assert markdown("[owl]") == "<p>[owl]</p>\n"


def test_only_the_preset_default_has_tables() -> None:
    table = "| owl | cat |\n|-----|-----|\n| sea | pea |\n"
    assert "<td>sea</td>" in markdown(table, preset="default")
    assert "<td>" not in markdown(table)


@with_every_preset
def test_typographer_works(preset: Preset) -> None:
    assert markdown('"owl" (c)', preset=preset, typographer=True) == "<p>“owl” ©</p>\n"
    assert markdown('"owl" (c)', preset=preset) == "<p>&quot;owl&quot; (c)</p>\n"


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_line_endings_make_no_difference(newline: str) -> None:
    poem = "# owl\n\na cat\nat sea\n\n- pea\n\n```\ncode\n```\n"
    assert markdown(poem.replace("\n", newline)) == markdown(poem)


@pytest.mark.parametrize("poem", ["", "\n", "\r\n", "  \t\n"])
def test_a_poem_without_text_has_an_empty_result(poem: str) -> None:
    assert markdown(poem) == ""


@with_every_preset
def test_a_list_of_twenty_levels_is_complete(preset: Preset) -> None:
    """With its own limit, the preset commonmark drops everything from the tenth level."""
    result = markdown("".join("  " * level + f"- owl {level};\n" for level in range(20)), preset=preset)
    assert all(f"owl {level};" in result for level in range(20))


@pytest.mark.parametrize("marker", ["> ", "- ", "1. ", "> - ", "- > "])
def test_a_nested_poem_is_complete_or_rejected(marker: str) -> None:
    rejected = 0
    for levels in range(1, MAX_NESTING + 5):
        try:
            assert "owl" in markdown(marker * levels + "owl")
        except xformd.GibberishError:
            rejected += 1
    assert rejected > 0


def test_the_limit_is_a_hundred_levels() -> None:
    assert "owl" in markdown(">" * (MAX_NESTING - 1) + "owl")  # its paragraph is the last level
    with pytest.raises(xformd.GibberishError, match=f"more than {MAX_NESTING} levels deep"):
        markdown(">" * MAX_NESTING + "owl")


@pytest.mark.parametrize("marker", [">", "> ", "- ", "1. "])
def test_thousands_of_levels_are_rejected(marker: str) -> None:
    with pytest.raises(xformd.GibberishError):
        markdown(marker * 20_000 + "owl")


@pytest.mark.parametrize("marker", ["[", "![", "[owl]("])
def test_thousands_of_open_brackets_stay_text(marker: str) -> None:
    assert markdown(marker * 20_000) == f"<p>{marker * 20_000}</p>\n"


def test_images_in_images_do_not_exhaust_the_stack() -> None:
    """This is the parser's deepest recursion."""
    assert "owl" in markdown("![" * MAX_NESTING + "owl" + "](sea)" * MAX_NESTING)
