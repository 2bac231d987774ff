"""Built-in transforms on the characters of a text."""

import functools
import html
import itertools
import re
import unicodedata
from typing import Literal

import xformd
from xformd.plugins.builtin import built_in, provide_all
from xformd.plugins.builtin.poetry import BYTE_ORDER_MARK, each_line, line_transform

MAX_MARKS = 100  # on one character: sorting takes quadratic time; UAX #15 (Stream-Safe Text) has use for 30

_ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm",
)

# The blocks of combining marks that are used in scripts with upper and lower case.
_MARK = r"\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD = re.compile(rf"[^\W_](?>[^\W_]++|[{_MARK}]++|['\u2019](?=[^\W_]))*+")
_MANY_ABOVE_ASCII = re.compile(rf"[\u0300-\U0010ffff]{{{MAX_MARKS},}}")

# Letters that NFKD leaves whole; and apostrophes, which do not end a word.
_PLAIN = dict(
    zip(map(ord, "æœøłđðþħ\u0131'\u2019"), ("ae", "oe", "o", "l", "d", "d", "th", "h", "i", "", ""), strict=True)
)
_ASCII_WORD = re.compile("[a-z0-9]+")

# As HTML's own tokenizer takes it, whatever is missing: it matches from each of these < on, and looks at nothing twice.
_ATTRIBUTES = r"""(?>[^=>]++|=\s*+(?>"[^"]*+"?+|'[^']*+'?+|[^\s>]*+))*+>?+"""
_MARKUP = re.compile(
    rf"(?ais)<!--(?>-?>|.*?--!?>|.*)|<[!?][^>]*+>?+|</(?>[a-z]{_ATTRIBUTES}|[^>]*+>?+)"
    rf"|<(script|style)(?=[\s/>]){_ATTRIBUTES}(?>.*?(?=</\1[\s/>])|.*)|<[a-z]{_ATTRIBUTES}"
)
_LONG_REFERENCE = re.compile("(?<=&#)[0-9]{9,}")


@built_in(("The Owl", "THE OWL"), ("straße", "STRASSE"), ("", ""), inline=True)
def upper(poem: str) -> str:
    """Upper-case the poem."""
    return poem.upper()


@built_in(
    ("the owl and the pussy-cat", "The Owl And The Pussy-Cat"),
    ("THEY'RE 3RD", "They're 3rd"),
    ("e\u0301cole", "E\u0301cole"),
)
def titlecase(poem: str) -> str:
    """Capitalize each word and lower-case the rest of it."""
    return _WORD.sub(lambda word: word[0][0].title() + word[0][1:].lower(), poem)


@built_in(("e\u0301", "é"), ("é", "e\u0301", {"form": "NFD"}), ("ﬁne ①", "fine 1", {"form": "NFKC"}))
def normalize(poem: str, *, form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFC") -> str:
    """Convert the text to a Unicode normalization form.

    Args:
        form: NFC joins letters and accents, NFD takes them apart; NFKC and NFKD also replace ligatures and the like.
    """
    for run in _MANY_ABOVE_ASCII.findall(poem):
        for is_mark, marks in itertools.groupby(run, _is_mark):
            if is_mark and sum(1 for _ in marks) > MAX_MARKS:
                raise xformd.GibberishError(f"more than {MAX_MARKS} combining marks on one character")
    return unicodedata.normalize(form, poem)


@functools.lru_cache(maxsize=1_024)
def _is_mark(character: str) -> bool:
    # Some characters are not marks themselves, but decompose into marks only.
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) > 0


@built_in(("Gur Bjy", "The Owl"), ("naïve", "anïir"), inline=True)
def rot13(poem: str) -> str:
    """Rotate each of the 26 letters by 13; applied twice, it restores the poem."""
    return poem.encode().translate(_ROT13).decode()  # that of str takes 4 ms for what is not in the table


@line_transform(
    ("The Owl & the Pussy-Cat\n", "the-owl-the-pussy-cat\n"),
    ("Don't!\r\nŒuvre nº 1½", "dont\r\noeuvre_no_11_2", {"separator": "_"}),
)
def slugify(poem: str, *, separator: Literal["-", "_", "."] = "-") -> str:
    """Turn each line into a slug of a-z and 0-9 for a URL.

    Args:
        separator: what stands between two words. Accents are removed, and other scripts count as spaces.
    """
    text = "".join(map(_to_ascii, poem))
    return each_line(text, lambda line: separator.join(_ASCII_WORD.findall(line)))


@functools.lru_cache(maxsize=1_024)
def _to_ascii(character: str) -> str:
    # Alone: to sort the marks of a character takes quadratic time, and they are not kept.
    parts = unicodedata.normalize("NFKD", character.casefold()).casefold().translate(_PLAIN)
    return "".join(part if part.isascii() else " " for part in parts if not unicodedata.combining(part))


@built_in(("\ufeffThe Owl", "The Owl"), ("The \ufeffOwl", "The \ufeffOwl"), inline=True)
def strip_bom(poem: str) -> str:
    """Remove a byte order mark at the front."""
    return poem.removeprefix(BYTE_ORDER_MARK)


@built_in(("<a href='/?a&b'>", "&lt;a href=&#x27;/?a&amp;b&#x27;&gt;"), ('"', "&quot;"), inline=True, at_least=1)
def html_escape(poem: str) -> str:
    """Escape &, <, > and quotes for HTML."""
    return html.escape(poem)


@built_in(("&lt;b&gt; &eacute;&#233;&#xE9;", "<b> ééé"), ("&amp;lt; &copy &nosuch; &#0;", "&lt; © &nosuch; \ufffd"))
def html_unescape(poem: str) -> str:
    """Replace the character references of HTML, such as &eacute;."""
    # No character has so large a number, and int() takes no more than 4,300 digits.
    return html.unescape(_LONG_REFERENCE.sub(lambda digits: digits[0].lstrip("0")[:9] or "0", poem))


@built_in(
    ("<p>The <b>Owl</b> &amp; the Cat<br></p>", "The Owl & the Cat"),
    ("<script>if (a < b) {}</script>1 < 2 <!-- <b> -->", "1 < 2 "),
    ("<a title=\"a > b\" href='>'>c</a>", "c"),
    accepts="text/html",
    produces="text/plain",
)
def strip_tags(poem: str) -> str:
    """Keep the text of HTML: no tags, comments, scripts, styles."""
    return "".join(map(html_unescape.function, _MARKUP.sub("\0", poem).split("\0")))


xformd_transforms = provide_all(globals())
