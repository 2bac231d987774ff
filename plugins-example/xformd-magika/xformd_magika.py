"""The transform ``content-type``: what kind of content some bytes are, by the neural network that Magika ships.

The model is loaded once, before the first request, and is in memory once for all workers. That takes a process without
threads, so the two libraries that start some are asked not to.
"""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import xformd

BATCH = 8
"""A batch of 32 takes as long for each poem, and 180 MB more: the network is bound by arithmetic, not by calls."""

_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@functools.cache
def load() -> Any:
    """Return the model, loaded on the first call: 0.3 s and 60 MB."""
    for name, value in _WITHOUT_THREADS.items():
        os.environ.setdefault(name, value)
    import onnxruntime  # here, so that they are imported once, and not by each command that only lists transforms
    from magika import Magika

    class SingleThreaded(Magika):
        """A model that computes in the thread that asks: the workers are what runs side by side."""

        def _init_onnx_session(self) -> onnxruntime.InferenceSession:
            onnxruntime.disable_telemetry_events()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            return onnxruntime.InferenceSession(self._model_path, options, providers=["CPUExecutionProvider"])

    return SingleThreaded()


@xformd.transform(
    produces="application/json",
    warm_up=load,
    batch=BATCH,
    examples=[
        (
            b"",
            '{"label": "empty", "mime_type": "inode/x-empty", "group": "inode", "description": "Empty file", '
            '"extensions": [], "is_text": false, "score": 1.0}\n',
        ),
        (
            b"owl\n",
            '{"label": "txt", "mime_type": "text/plain", "group": "text", "description": "Generic text document", '
            '"extensions": ["txt"], "is_text": true, "score": 1.0}\n',
        ),
    ],
)
def content_type(poems: list[bytes]) -> list[str]:
    """Tell what kind of content these are, whatever a file's name may say.

    Args:
        poems: any bytes. The beginning and the end of each are looked at.

    Returns:
        For each, a line of JSON: a label such as python, the media type, a group, a description, the usual suffixes,
        whether it is text, and a score, 0 to 1. What the network is not sure of is ``txt`` or ``unknown``.
    """
    with tempfile.TemporaryDirectory(dir=".") as folder:  # Magika takes several poems at a time from files alone
        paths = [Path(folder, str(number)) for number in range(len(poems))]
        for path, poem in zip(paths, poems, strict=True):
            path.write_bytes(poem)
        return [_describe(result) for result in load().identify_paths(paths)]


def _describe(result: Any) -> str:
    kind = result.output
    told = {
        "label": str(kind.label),
        "mime_type": kind.mime_type,
        "group": kind.group,
        "description": kind.description,
        "extensions": kind.extensions,
        "is_text": kind.is_text,
        "score": round(result.score, 2),  # further digits depend on the processor
    }
    return json.dumps(told) + "\n"


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this plugin."""
    return [content_type]
