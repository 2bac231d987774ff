"""Transforms that misbehave, and one that is about to be upgraded."""

import os

import xformd


@xformd.transform(timeout=2)
def hang(poem: str) -> str:
    """Compute for ever."""
    while True:
        pass


@xformd.transform
def crash(poem: str) -> str:
    """End the process that runs it, as a bug in a C library would."""
    os.abort()


@xformd.transform(deterministic=True)
def greet(poem: str) -> str:
    """Greet whoever is named."""
    return f"Hello, {poem}"


@xformd.hookimpl
def xformd_transforms():
    return [hang, crash, greet]
