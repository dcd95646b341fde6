"""The reference's answers: PyTorch in float64, and how far its own FP16 and the last place of a logit are from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._version import __version__
from trt_sam.accuracy.examples import Example
from trt_sam.gate.answers import Answer, answer_of, reduced
from trt_sam.gate.golden import Golden

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["float64_answers", "half_of", "last_place", "make_golden"]

Array = npt.NDArray[Any]


def make_golden(
    checkpoint: Checkpoint,
    name: str,
    examples: Iterable[Example],
    *,
    step: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Golden:
    """Golden data of a checkpoint: its answers in float64, rounded to float32.

    Args:
        checkpoint: of whose decoder.
        name: what to call it.
        examples: at least one.
        step: logits are kept at every `step`-th row and column; a power of two up to 64.
        progress: told the number of prompts done.
    """
    kept, answers, done = [], [], 0
    for example, answer in float64_answers(checkpoint, examples):
        kept.append(example)
        answers.append(reduced(answer, step))
        done += len(example.kinds)
        if progress is not None:
            progress(done)
    versions = {"trt-sam": __version__, "torch": metadata.version("torch"), "numpy": np.__version__}
    return Golden(name, checkpoint.sha256, tuple(kept), tuple(answers), versions)


def float64_answers(checkpoint: Checkpoint, examples: Iterable[Example]) -> Iterable[tuple[Example, Answer]]:
    """Each example with PyTorch's answer, computed in float64 and rounded to float32."""
    import torch

    from trt_sam.contract import input_specs

    decoder = copy.deepcopy(checkpoint.decoder).double()
    decoder.refresh_position_encoding()
    names = [spec.name for spec in input_specs(mask_input=True)]
    for example in examples:
        with torch.inference_mode():
            masks, scores = decoder(*(torch.from_numpy(np.asarray(example.feed[name], np.float64)) for name in names))
        outputs: Mapping[str, Array] = {
            "low_res_masks": masks.numpy().astype(np.float32),
            "iou_predictions": scores.numpy().astype(np.float32),
        }
        yield example, answer_of(outputs)


def last_place(answer: Answer) -> Answer:
    """The same answer, every logit one unit of its last place nearer minus infinity: the least difference there is."""
    moved = np.nextafter(answer.logits, np.float32(-np.inf))
    inside = moved > 0 if answer.step == 1 else answer.inside
    return Answer(answer.scores, inside, moved, answer.step)


def half_of(checkpoint: Checkpoint) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The decoder in float16 in PyTorch on the CPU (float32 where the package keeps it), as a function of a feed."""
    import torch

    from trt_sam.contract import input_specs, output_specs

    decoder = copy.deepcopy(checkpoint.decoder).to_half()
    inputs, outputs = [s.name for s in input_specs(mask_input=True)], [s.name for s in output_specs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            results = decoder(*(torch.from_numpy(feed[name]) for name in inputs))
        return {name: tensor.float().numpy() for name, tensor in zip(outputs, results, strict=True)}

    return run
