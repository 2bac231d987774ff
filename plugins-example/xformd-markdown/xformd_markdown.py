"""The transform ``markdown``: Markdown to HTML, by markdown-it-py.

The result is safe to show in a page, even if the poem comes from a stranger: raw HTML is escaped unless the caller
asks for it, and links to ``javascript:`` and the like stay text.
"""

import functools
from typing import Any, Literal

from markdown_it import MarkdownIt

import xformd

# The presets of markdown-it-py that differ from each other and need no other package: gfm-like needs linkify-it-py,
# js-default is another name for default, and zero turns Markdown off.
Preset = Literal["commonmark", "default"]

MAX_NESTING = 100
"""The default of markdown-it. Python's stack is deep enough for it: the parser uses about three frames per level."""


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
    produces="text/html",
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
        poem: Markdown. Every text is valid: anything that is not markup stays text.
        preset: ``commonmark``, or markdown-it's ``default``, which adds tables and strikethrough.
        html: whether raw HTML in the poem passes, including scripts. Only for authors that you trust.
        breaks: whether a line break in a paragraph becomes ``<br>``.
        typographer: whether quotes, dashes, ``...`` and ``(c)`` become their typographic forms.

    Returns:
        A fragment of HTML. Its lines end with a newline, however those of the poem end.

    Raises:
        xformd.GibberishError: quotes and lists are nested more than 100 levels deep.
    """
    parser = _parser(preset, html=html, breaks=breaks, typographer=typographer)
    references: dict[str, Any] = {}  # link definitions, which must not reach the next poem
    tokens = parser.parse(poem, references)
    if any(token.level > MAX_NESTING for token in tokens):
        raise xformd.GibberishError(f"quotes and lists are nested more than {MAX_NESTING} levels deep")
    result: str = parser.renderer.render(tokens, parser.options, references)
    return result


@functools.lru_cache
def _parser(preset: Preset, *, html: bool, breaks: bool, typographer: bool) -> MarkdownIt:
    # Past its own limit the parser silently drops text. That limit must be two levels above ours, so that a poem which
    # loses text has a token past our limit, by which markdown() rejects it.
    options = {"maxNesting": MAX_NESTING + 2, "html": html, "breaks": breaks, "typographer": typographer}
    # The option alone has no effect in the commonmark preset, which lacks these two rules.
    return MarkdownIt(preset, options).enable(["replacements", "smartquotes"] if typographer else [])


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this plugin."""
    return [markdown]
