"""A plugin that tells what files are with magika's model, in batches, and the function alone, which the peer calls too.

magika takes a list only of files on disk; what it does with them is done here with bytes.
"""

import functools
import io
from collections.abc import Iterable
from pathlib import Path

import onnxruntime
from magika import Magika
from magika.types import Seekable

import xformd
from benchmarks.peers.hang import hang_at

MOST, WAIT_S = 32, 0.005


class OneThreaded(Magika):
    """Runs its model on one thread: there is a process for each CPU."""

    def _init_onnx_session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self._model_path, options, providers=["CPUExecutionProvider"])


@functools.cache
def model() -> Magika:
    """Load the model, the first time."""
    return OneThreaded()


def identify(contents: list[bytes]) -> list[str]:
    """Return what kind each one is of: ``python``, ``markdown``."""
    results, features = {}, []
    for path, content in ((Path(str(number)), content) for number, content in enumerate(contents)):
        hang_at(content)
        result, found = model()._get_result_or_features_from_seekable(Seekable(io.BytesIO(content)), path)
        if found is None:
            results[str(path)] = result
        else:
            features.append((path, found))
    results |= model()._get_results_from_features(features)
    return [str(results[str(number)].prediction.output.label) for number in range(len(contents))]


@xformd.transform(name="content-type", warm_up=model, batch=MOST, batch_wait_s=WAIT_S, timeout=2)
def transform(poems: list[bytes]) -> list[str]:
    """Tell what kind of file this is."""
    return identify(poems)


@xformd.hookimpl
def xformd_transforms() -> Iterable[xformd.Transform]:
    """Return the one that there is."""
    return [transform]
