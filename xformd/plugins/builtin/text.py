"""Built-in transforms on the characters of a text."""

import functools
import itertools
import re
import unicodedata
from typing import Literal

import xformd

MAX_MARKS = 100
"""Sorting the marks of one character takes quadratic time; UAX #15 (Stream-Safe Text) finds no use for more than 30."""

_ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm",
)

# The blocks of combining marks that are used in scripts with upper and lower case.
_MARK = r"\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD = re.compile(rf"[^\W_](?>[^\W_]++|[{_MARK}]++|['\u2019](?=[^\W_]))*+")
_MANY_ABOVE_ASCII = re.compile(rf"[\u0300-\U0010ffff]{{{MAX_MARKS},}}")


@xformd.transform(examples=[("The Owl", "THE OWL"), ("straße", "STRASSE"), ("", "")], inline=True, deterministic=True)
def upper(poem: str) -> str:
    """Upper-case the poem."""
    return poem.upper()


@xformd.transform(
    examples=[
        ("the owl and the pussy-cat", "The Owl And The Pussy-Cat"),
        ("THEY'RE 3RD", "They're 3rd"),
        ("e\u0301cole", "E\u0301cole"),
    ],
    deterministic=True,
)
def titlecase(poem: str) -> str:
    """Capitalize each word and lower-case the rest of it."""
    return _WORD.sub(lambda word: word[0][0].title() + word[0][1:].lower(), poem)


@xformd.transform(
    examples=[
        ("e\u0301", "é"),
        ("é", "e\u0301", {"form": "NFD"}),
        ("ﬁne ①", "fine 1", {"form": "NFKC"}),
    ],
    deterministic=True,
)
def normalize(poem: str, *, form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFC") -> str:
    """Convert the text to a Unicode normalization form.

    Args:
        poem: any text.
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


@xformd.transform(examples=[("Gur Bjy", "The Owl"), ("naïve", "anïir")], inline=True, deterministic=True)
def rot13(poem: str) -> str:
    """Rotate each of the 26 letters by 13; applied twice, it restores the poem."""
    return poem.encode().translate(_ROT13).decode()  # that of str takes 4 ms for what is not in the table


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this module."""
    return [upper, titlecase, normalize, rot13]
