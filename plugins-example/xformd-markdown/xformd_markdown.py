"""The transform ``markdown``: Markdown to HTML, by markdown-it-py.

The result is safe to show in a page, whoever wrote the poem: raw HTML is escaped unless the caller asks for it, and
links to ``javascript:`` and the like stay text.
"""

import functools
from typing import Any, Literal

from markdown_it import MarkdownIt

import xformd

# markdown-it-py has more presets. These are the ones that differ and that need no other package: gfm-like needs
# linkify-it-py, js-default is another name of default, and zero leaves every mark as it is.
Preset = Literal["commonmark", "default"]

MAX_NESTING = 100
"""What markdown-it allows by default. Python's stack bears it: the parser takes about three frames for each level."""


@xformd.transform(
    examples=[
        ("# The *Owl*", "<h1>The <em>Owl</em></h1>\n"),
        ("[owl](/owl)", '<p><a href="/owl">owl</a></p>\n'),
        ("<b>owl</b>", "<p>&lt;b&gt;owl&lt;/b&gt;</p>\n"),
        ("<b>owl</b>", "<p><b>owl</b></p>\n", {"html": True}),
        ("an owl\na cat", "<p>an owl<br />\na cat</p>\n", {"breaks": True}),
        ('"owl" --- cat...', "<p>“owl” — cat…</p>\n", {"typographer": True}),
        ("~~owl~~", "<p>~~owl~~</p>\n"),
        ("~~owl~~", "<p><s>owl</s></p>\n", {"preset": "default"}),
        ("", ""),
    ],
    media_type="text/html",
)
def markdown(
    poem: str,
    *,
    preset: Preset = "commonmark",
    html: bool = False,
    breaks: bool = False,
    typographer: bool = False,
) -> str:
    """Turn Markdown into HTML.

    Args:
        poem: Markdown. No text is wrong Markdown: what is no markup stays text.
        preset: ``commonmark``, or markdown-it's ``default``, which adds tables and strikethrough.
        html: whether raw HTML in the poem passes. Only for authors whom you trust: scripts pass too.
        breaks: whether a line break in a paragraph becomes ``<br>``.
        typographer: whether quotes, dashes, ``...`` and ``(c)`` become their typographic forms.

    Returns:
        A fragment of HTML, whose lines end with a newline whatever those of the poem end with.

    Raises:
        xformd.GibberishError: quotes and lists are nested more than 100 levels deep.
    """
    parser = _parser(preset, html=html, breaks=breaks, typographer=typographer)
    references: dict[str, Any] = {}  # link definitions, which are this poem's alone
    tokens = parser.parse(poem, references)
    if any(token.level > MAX_NESTING for token in tokens):
        raise xformd.GibberishError(f"quotes and lists are nested more than {MAX_NESTING} levels deep")
    result: str = parser.renderer.render(tokens, parser.options, references)
    return result


@functools.lru_cache
def _parser(preset: Preset, *, html: bool, breaks: bool, typographer: bool) -> MarkdownIt:
    # Past its own limit the parser drops text without a word. It must come two levels after ours, so that a poem
    # that loses text has tokens on a level by which markdown() knows it.
    options = {"maxNesting": MAX_NESTING + 2, "html": html, "breaks": breaks, "typographer": typographer}
    # The option alone does nothing in the commonmark preset, which leaves these two rules out.
    return MarkdownIt(preset, options).enable(["replacements", "smartquotes"] if typographer else [])


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Give the transforms of this plugin."""
    return [markdown]
