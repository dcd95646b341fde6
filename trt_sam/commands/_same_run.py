"""What the flags of `segment` name, by contents: a later run goes on in an output only with the same (`cluster.same_run`)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trt_sam._files import existing_file, sha256_of
from trt_sam.download import CATALOGUE, check_source, weights_sha256

if TYPE_CHECKING:
    from trt_sam.cluster import Task

__all__ = ["model_of_run", "settings_of_run"]


def model_of_run(args: argparse.Namespace) -> dict[str, Any]:
    """Hashes of what `--set`, `--checkpoint` and `--onnx` name, by these names.

    Raises:
        TrtSamError: one of them is not there, or the set is damaged.
    """
    from trt_sam.cluster.same_run import sha256_of_graphs

    model: dict[str, Any] = {}
    if args.set is not None:
        model["set"] = sha256_of_graphs(args.set)
    if args.checkpoint is not None:
        model["checkpoint"] = _weights(args.checkpoint)
    if args.onnx is not None:
        model["onnx"] = sha256_of(existing_file(args.onnx, "graph"))
    return model


def settings_of_run(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What all lines of a run share, as `cluster.same_run` has it; raises as `model_of_run`."""
    from trt_sam.cluster import same_run

    return same_run.settings_of_run(model_of_run(args), task)


def _weights(checkpoint: str) -> str:
    if checkpoint in CATALOGUE:
        # Not fetched for that: it is whenever it is loaded, and is this file or refused.
        return CATALOGUE[checkpoint].sha256
    # What a hub's id stands for is not known before it is loaded.
    return weights_sha256(check_source(checkpoint)) or checkpoint
