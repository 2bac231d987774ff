"""The transform ``shout``: a complete plugin for xformd in one file."""

import xformd

MAX_MARKS = 100
"""Each mark is a byte of the result, and the caller chooses how many."""


@xformd.transform(
    examples=[
        ("The Owl", "THE OWL!"),
        ("The Owl\n", "THE OWL!!!\n", {"marks": 3}),
        ("The Owl\r\n", "THE OWL!\r\n"),
        ("The Owl", "THE OWL", {"marks": 0}),
        ("", ""),
    ]
)
def shout(poem: str, *, marks: int = 1) -> str:
    """Say it louder.

    Args:
        poem: any text. An empty poem stays empty.
        marks: how many exclamation marks to put at the end, 0 to 100.

    Returns:
        The poem in upper case with the marks after its text, before a final newline.

    Raises:
        xformd.BadOptions: the number of marks is out of range.
    """
    if not 0 <= marks <= MAX_MARKS:
        raise xformd.BadOptions(f"shout: option 'marks' takes 0 to {MAX_MARKS}, not {marks}")
    newline = next((end for end in ("\r\n", "\n") if poem.endswith(end)), "")
    text = poem.removesuffix(newline)
    if not text:
        return poem
    return text.upper() + "!" * marks + newline


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this plugin."""
    return [shout]
