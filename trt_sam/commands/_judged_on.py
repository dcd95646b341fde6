"""What `compare` judges on, by its flags: golden data, embeddings, photos, noise, or what a known checkpoint brings along.

The same for all candidates. Whose image encoder and whose shipped data it is says the reference, and where it does not the
candidates together, so that it does not hang on which of them is named first.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trt_sam.accuracy.sides import Side
    from trt_sam.gate.comparison import Questions
    from trt_sam.gate.golden import Golden
    from trt_sam.model.checkpoint import Checkpoint

    Embed = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

__all__ = ["DEFAULT_PROMPTS", "prompts_of", "questions_of"]

DEFAULT_PROMPTS = 256


def questions_of(
    args: argparse.Namespace,
    reference: Side | None,
    candidates: Sequence[Side],
    golden: Golden | None,
    photos: Sequence[Path],
) -> Questions:
    """The questions to `reference` (None with golden data) and all candidates.

    Raises:
        InputError: nothing says what to judge on, or the reference cannot draw prompts.
    """
    from trt_sam.gate import questions
    from trt_sam.gate.golden import load_golden, shipped_golden

    count = prompts_of(args, golden)
    if golden is not None:
        return questions.golden_questions(golden, count)
    assert reference is not None
    masks = all(any(spec.name == "mask_input" for spec in side.runner.inputs) for side in (reference, *candidates))
    if args.embeddings is not None:
        checkpoint = _encoding(reference, candidates)
        return questions.of_embeddings(
            args.embeddings,
            photos,
            count,
            _decoder(reference),
            seed=args.seed,
            earlier_masks=masks,
            encoder_sha256="" if checkpoint is None else checkpoint.encoder_sha256,
        )
    if args.photos is not None:
        checkpoint = _encoding(reference, candidates)
        if checkpoint is None:
            raise InputError("--photos need an image encoder: name a checkpoint as REFERENCE, or give --embeddings")
        embed, decode = checkpoint.image_encoder().embed, _decoder(reference)
        return questions.of_photos(photos, embed, count, decode, seed=args.seed, earlier_masks=masks)
    if args.random_embeddings:
        return questions.noise(count, seed=args.seed)
    weights = _weights(reference, candidates)
    standin = _standin_encoder(weights)
    if standin is not None:
        return questions.of_scenes(standin, count, seed=args.seed)
    shipped = shipped_golden(weights)
    if shipped is not None:
        return questions.golden_questions(load_golden(shipped), count, answered=False)
    raise InputError(
        "there is nothing to judge by: give --photos DIR, --embeddings DIR or --golden G.npz (random embeddings would give a "
        "figure that says nothing of masks; --random-embeddings asks for that)"
    )


def prompts_of(args: argparse.Namespace, golden: Golden | None) -> int:
    """How many prompts are asked for."""
    if args.prompts is not None:
        return int(args.prompts)
    return DEFAULT_PROMPTS if golden is None else golden.prompts


def _decoder(reference: Side) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    if next(spec for spec in reference.runner.outputs if spec.name == "iou_predictions").dims[1] == 1:
        raise InputError(
            f"{reference.source} gives the selected mask only, but prompts are drawn on its four masks; name a checkpoint "
            "or a graph without --best-mask as REFERENCE"
        )
    return reference.runner.run


def _encoding(reference: Side, candidates: Sequence[Side]) -> Checkpoint | None:
    """The checkpoint whose image encoder embeds, or made the embeddings: the reference's own, else the candidates'."""
    if reference.checkpoint is not None:
        return reference.checkpoint
    own = [side for side in candidates if side.checkpoint is not None]
    encoders = {side.checkpoint.encoder_sha256 for side in own if side.checkpoint is not None} if len(own) > 1 else set()
    if len(encoders) > 1:
        raise InputError(
            f"{' and '.join(sorted(side.source for side in own))} have different image encoders, and {reference.source} has "
            "none to say which counts; name a checkpoint as REFERENCE, or compare them one by one"
        )
    return own[0].checkpoint if own else None


def _weights(reference: Side, candidates: Sequence[Side]) -> str:
    """SHA-256 of the checkpoint that is judged: the reference's, else that of all candidates that have one; "" if unknown."""
    if reference.checkpoint_sha256:
        return reference.checkpoint_sha256
    known = {side.checkpoint_sha256 for side in candidates} - {""}
    return known.pop() if len(known) == 1 else ""


def _standin_encoder(weights: str) -> Embed | None:
    """The image encoder of the stand-in with these weights, where it is one and can be run here."""
    if any(importlib.util.find_spec(package) is None for package in ("torch", "safetensors", "PIL")):
        return None
    from trt_sam.model.checkpoint import STANDINS, load_checkpoint

    for name in STANDINS:
        standin = load_checkpoint(name)
        if standin.sha256 == weights:
            return standin.image_encoder().embed
    return None
