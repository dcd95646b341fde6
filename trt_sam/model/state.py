"""States of weights: whether one fits a module, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trt_sam.errors import CheckpointError

__all__ = ["check_fit", "some", "state_sha256"]


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError, beginning with `what`, unless names, shapes and float dtypes of `state` are the expected."""
    faults = []
    for title, names in (
        ("missing", [name for name in expected if name not in state]),
        ("unexpected", [name for name in state if name not in expected]),
    ):
        if names:
            faults.append(f"{title} {some(names)}")
    wrong = [
        f"{name} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)}, must be {list(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and (value.shape != expected[name].shape or not value.is_floating_point())
    ]
    if wrong:
        faults.append(f"wrong shape or type: {some(wrong)}")
    if faults:
        raise CheckpointError(f"{what}: {'; '.join(faults)}; give an unmodified SAM or a variant with the same decoder")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names (sorted), shapes and float32 bytes of a state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def some(names: Iterable[str]) -> str:
    """At most five of them, then a count."""
    names = list(names)
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
