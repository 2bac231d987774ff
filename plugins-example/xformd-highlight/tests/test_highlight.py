"""What the transform adds to Pygments: names are corrected, results are safe and complete, and a guess is soon made."""

import html
import re
import time

import pytest
from pygments.styles import get_all_styles
from xformd_highlight import TIMEOUT_S, highlight

import xformd

PYTHON = 'def owl(sea: str = "pea-green") -> None:\n    """Go to sea."""\n    print(f"{sea} <boat> & honey")\n'


def text_of(result: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", result))


@pytest.mark.parametrize("language", ["python", "Python", "py", "c++", "html", "sql", "text", "guess"])
@pytest.mark.parametrize("poem", [PYTHON, "\n\n  owl\n\n", "<b>owl</b>\n"])
def test_all_of_the_code_is_there(language: str, poem: str) -> None:
    assert text_of(highlight(poem, language=language)) == poem + "\n"


def test_the_code_is_escaped() -> None:
    result = highlight("<script>alert('owl')</script>", language="html")
    assert set(re.findall(r"</?(\w+)", result)) == {"div", "pre", "span"}
    assert "<script" not in highlight('x = "<script>" # </style>', language="python", page=True)


def test_a_language_colours_what_it_knows() -> None:
    assert '<span style="color: #008000; font-weight: bold">def</span>' in highlight(PYTHON, language="python")
    assert "<span style" not in highlight(PYTHON, language="text")


@pytest.mark.parametrize(
    ("language", "hint"),
    [
        ("pyhton", "did you mean python"),
        ("javascrpt", "did you mean javascript"),
        ("no such thing at all", "take a name that Pygments lists, such as python"),
        ("", "take a name"),
        ("x" * 10_000, "take a name"),
    ],
)
def test_an_unknown_language_is_rejected_with_a_hint(language: str, hint: str) -> None:
    with pytest.raises(xformd.BadOptions, match=hint) as caught:
        highlight(PYTHON, language=language)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("poem", "language"),
    [
        ("#!/usr/bin/env python3\nprint(1)\n", "python"),
        ("#!/bin/sh\necho owl\n", "bash"),
        ("<?xml version='1.0'?><owl/>\n", "xml"),
        ("<!DOCTYPE html><p>owl</p>\n", "html"),
        ("<?php echo 'owl'; ?>\n", "php"),
        ("#include <iostream>\nint main() { std::cout << 1; }\n", "cpp"),
        ("--- a/owl\n+++ b/owl\n@@ -1 +1 @@\n-owl\n+cat\n", "diff"),
        ("The Owl and the Pussy-cat went to sea\n", "text"),
        ("", "text"),
        (" \n", "text"),
    ],
)
def test_a_language_is_guessed_if_it_shows(poem: str, language: str) -> None:
    assert highlight(poem) == highlight(poem, language=language)


@pytest.mark.parametrize("run", [" ", "\n", "\r\n", "\n ", "a", "a \n", "(", "<", "/*"])
def test_guessing_takes_a_moment_on_any_text(run: str) -> None:
    highlight("")
    before = time.process_time()
    highlight("x" + run * (100_000 // len(run)), language="guess")
    assert time.process_time() - before < TIMEOUT_S / 2


@pytest.mark.parametrize("style", list(get_all_styles()))
def test_every_style_works(style: str) -> None:
    assert text_of(highlight(PYTHON, style=style, language="python")) == PYTHON + "\n"


def test_styles_are_choices_that_a_page_can_offer() -> None:
    (option,) = (option for option in highlight.options if option.name == "style")
    assert {"default", "monokai"} <= set(option.choices)


def test_lines_are_numbered_on_request() -> None:
    assert text_of(highlight("owl\ncat\n", language="text", line_numbers=True)) == "1owl\n2cat\n\n"


def test_a_page_is_complete() -> None:
    result = highlight(PYTHON, language="python", style="monokai", page=True)
    assert result.startswith("<!DOCTYPE html>")
    assert "<title>Python</title>" in result
    assert "background: #272822" in result
    assert result.endswith("</html>\n")
