"""Both decoders of a set as one runner: with an earlier mask, and without."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import TensorSpec
from trt_sam.runtime.interface import Runner

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BothDecoders"]

Array = npt.NDArray[Any]


class BothDecoders:
    """The runner of a set with two decoders, for comparing: prompts with an earlier mask run in the one, others in the other.

    Left to itself the runner takes one graph for all prompts of a feed, the one with the mask where any brings one, so that the
    other would hardly be compared. The interface is `interface.Runner`.
    """

    def __init__(self, runner: Runner) -> None:
        """Run prompts with `runner`, and close it with this one."""
        self._runner = runner
        self.inputs: tuple[TensorSpec, ...] = runner.inputs
        self.outputs: tuple[TensorSpec, ...] = runner.outputs
        self.limits: Mapping[str, tuple[int, int]] = runner.limits

    @property
    def image_id(self) -> int:
        """As the runner's."""
        return self._runner.image_id

    def set_image(self, embedding: npt.NDArray[np.float32]) -> None:
        """As the runner's."""
        self._runner.set_image(embedding)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed with `has_mask_input`, twice where only some prompts have a mask; raises as the runner does."""
        masked = np.asarray(feed.get("has_mask_input", np.zeros(0))) != 0
        outputs = self._runner.run(feed)
        if masked.all() or not masked.any():
            return outputs
        without = self._runner.run({**feed, "has_mask_input": np.zeros(len(masked), np.float32)})
        return {name: np.where(_rows(masked, array), array, without[name]) for name, array in outputs.items()}

    def close(self) -> None:
        """Close the runner; safe to call again."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _rows(flags: Array, like: Array) -> Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))
