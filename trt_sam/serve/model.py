"""`Model`: a runner as the service uses it; pictures go in, and prompts on images that the runner holds by number.

`OnnxRunner` and `DecoderRunner` both have what is used. Everything here is called by one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LOW_RES_SIZE, TensorSpec, check_scores
from trt_sam.errors import ContractError, InputError
from trt_sam.graph.advice import EXPORT_SET
from trt_sam.runtime.prompt_tokens import Prompt, padded
from trt_sam.serve.faults import bad_prompt, image_unknown

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Embeds", "Model", "ServedRunner"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


class Embeds(Protocol):
    """An image encoder."""

    def embed(self, rgb: Picture) -> FloatArray:
        """Embed uint8 [height, width, 3] RGB to float32 [1, 256, 64, 64]."""


class ServedRunner(Protocol):
    """What is used of a `trt_sam.runtime.interface.PromptRunner`. It may also have `takes_photos` and `warm_up`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def limits(self) -> Mapping[str, tuple[int, int]]: ...
    def add_image(self, image: Any) -> int: ...
    def use_image(self, image: int) -> None: ...
    def drop_image(self, image: int) -> None: ...
    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]: ...
    def most_prompts(self, num_tokens: int, *, with_mask: bool = False) -> int: ...
    def close(self) -> None: ...


class Model:
    """A runner and its image encoder; owns the runner, and closes it."""

    def __init__(self, runner: ServedRunner, name: str, *, encoder: Embeds | None = None, executed: str = "") -> None:
        """Serve `runner`.

        Args:
            runner: of any kind, whose graph gives all masks.
            name: for people, and in KServe's paths.
            encoder: what embeds pictures; None where the runner takes them itself.
            executed: words for what executes.

        Raises:
            InputError: there is no image encoder, or the graph gives only its best mask.
        """
        for spec in runner.outputs:
            if spec.name == "iou_predictions" and spec.dims[-1] == 1:
                raise InputError("this graph gives only its best mask, a service needs all: export without --best-mask")
        self._takes_photos = bool(getattr(runner, "takes_photos", False))
        if encoder is None and not self._takes_photos:
            raise InputError(f"there is no image encoder to serve pictures with; give a set with one: {EXPORT_SET}")
        self.name, self.executed = name, executed or type(runner).__name__
        self.runner = runner
        self._encoder = encoder
        self._names = {spec.name for spec in runner.inputs}
        self.takes_masks = "mask_input" in self._names

    def add(self, rgb: Picture) -> int:
        """Embed a picture, uint8 [height, width, 3] RGB, and hold it; gives its number. The embedding stays where it is."""
        return self.runner.add_image(rgb if self._encoder is None else self._encoder.embed(rgb))

    def drop(self, image: int) -> None:
        """Forget an image; nothing happens where it is not held."""
        self.runner.drop_image(image)

    def decode(
        self, image: int, prompts: list[Prompt], size: tuple[int, int], earlier: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Decode `prompts` (points in the 1024 frame with labels) on a held image whose picture is of `size` (height, width).

        Returns logits float32 [n, 4, 256, 256] and predicted IoU float32 [n, 4].

        Raises:
            Refusal: the image is not held any more, or the graph takes no `earlier` mask [n, 1, 256, 256].
        """
        coords, labels = padded(prompts, self.runner.limits.get("num_points", (1, 0))[0])
        most = self.runner.limits.get("num_points", (1, 1 << 30))[1]
        if coords.shape[1] > most:
            raise bad_prompt(f"the prompt has {coords.shape[1]} points, corners included; this model takes at most {most}")
        feed: dict[str, Array] = {"point_coords": coords, "point_labels": labels}
        if "orig_im_size" in self._names:
            feed["orig_im_size"] = np.array(size, np.int64)
        step = self.most_prompts(coords.shape[1], with_mask=earlier is not None)
        parts = []
        for start in range(0, len(prompts), step):
            rows = slice(start, start + step)
            part = {name: array if name == "orig_im_size" else array[rows] for name, array in feed.items()}
            self._add_mask(part, None if earlier is None else earlier[rows])
            parts.append(self.run(image, part))
        low_res, iou = (
            np.concatenate([np.asarray(part[name], np.float32) for part in parts])
            for name in ("low_res_masks", "iou_predictions")
        )
        check_scores(iou)
        return low_res, iou

    def run(self, image: int, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run a feed of the graph without `image_embeddings` on a held image.

        Raises:
            Refusal: it is not held any more.
        """
        try:
            self.runner.use_image(image)
        except ContractError:
            raise image_unknown() from None
        return self.runner.run(feed)

    def most_prompts(self, tokens: int, *, with_mask: bool = False) -> int:
        """How many prompts of `tokens` go into one call."""
        return self.runner.most_prompts(tokens, with_mask=with_mask)

    def warm_up(self) -> None:
        """Do once what requests do: a picture, a click, a box, a refined mask."""
        warm: Any = getattr(self.runner, "warm_up", None)
        if warm is not None:
            warm()
        grey = np.full((64, 64, 3), 128, np.uint8)
        image = self.add(grey)
        point = (np.array([[512, 512], [0, 0]], np.float32), np.array([1, -1], np.float32))
        box = (np.array([[100, 100], [900, 900]], np.float32), np.array([2, 3], np.float32))
        for prompt in (point, box):
            low_res, _ = self.decode(image, [prompt], (64, 64))
        if self.takes_masks:
            self.decode(image, [point], (64, 64), low_res[:, :1])
        self.drop(image)

    def close(self) -> None:
        """Close the runner; safe to call again."""
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _add_mask(self, feed: dict[str, Array], earlier: FloatArray | None) -> None:
        if not self.takes_masks:
            if earlier is not None:
                raise bad_prompt("this model takes no earlier mask; serve a set with decode_mask (export --decode-mask)")
            return
        count = len(feed["point_coords"])
        empty = np.zeros((count, 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
        feed["mask_input"] = empty if earlier is None else earlier
        feed["has_mask_input"] = np.full(count, earlier is not None, np.float32)
