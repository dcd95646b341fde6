"""Prompts on a runner's images: the calls of `DecoderRunner`, each with its types to the keyword."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import numpy as np
import numpy.typing as npt

from trt_sam.errors import ContractError
from trt_sam.runner.call import Decoded, DecodedOnDevice
from trt_sam.runner.core import Core
from trt_sam.runner.dispatch import Dispatch
from trt_sam.runner.images.calls import ImageCalls
from trt_sam.runner.lease import Lease
from trt_sam.runner.many import decode_many
from trt_sam.runner.plans.plan import Plan
from trt_sam.runner.prompts import Prompts
from trt_sam.runner.submission import Submission
from trt_sam.runtime.call.decoded import Asked, Bits, Masks, Numbers
from trt_sam.runtime.call.given import rows_of_prompts
from trt_sam.runtime.call.several import image_of_each
from trt_sam.runtime.interface import as_given

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PromptCalls"]

Array = npt.NDArray[Any]
Result = TypeVar("Result")


class PromptCalls:
    """The half of `DecoderRunner` that takes prompts; the other half opens, holds the images and closes."""

    _core: Core
    _dispatch: Dispatch
    _images: ImageCalls

    @overload
    def decode(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        copy: bool = False,
        **asked: Unpack[Asked],
    ) -> Decoded: ...

    @overload
    def decode(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Literal["device"],
        copy: bool = False,
        **asked: Unpack[Asked],
    ) -> DecodedOnDevice: ...

    def decode(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks | Literal["device"] = "best",
        copy: bool = False,
        **asked: Unpack[Asked],
    ) -> Decoded | DecodedOnDevice:
        """Decode prompts on an image, and wait. Arguments and errors are those of `submit`; and `copy=True` gives results that
        belong to the caller.

        Returns views of the slot's memory, valid until its next use: until the next call where `in_flight` is 1, or `in_flight`
        calls later. Where several threads call, take `copy=True`.
        """
        core = self._core
        core.check_open()
        with core.device.active():  # once, where `submit` and `result` would switch to it and back each
            prompts, image, timeout = self._prompts(points, labels, boxes, mask_input, masks, **asked)
            found: Decoded | DecodedOnDevice = self._submit(prompts, image, timeout).result(copy=copy)
            return found

    @overload
    def submit(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        **asked: Unpack[Asked],
    ) -> Submission[Decoded]: ...

    @overload
    def submit(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Literal["device"],
        **asked: Unpack[Asked],
    ) -> Submission[DecodedOnDevice]: ...

    def submit(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        image: int | Sequence[int] | None = None,
        masks: Masks | Literal["device"] = "best",
        bits: Bits = False,
        image_size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> Submission[Decoded] | Submission[DecodedOnDevice]:
        """Queue prompts, and return at once.

        Args:
            points: [num_prompts, num_points, 2] or [num_points, 2], (x, y) in the 1024 frame; the "not a point" that SAM
                wants after clicks without a box is added here.
            labels: as many, 1 foreground, 0 background, -2 absent.
            boxes: [num_prompts, 4] or [4], (x0, y0, x1, y1) in the 1024 frame.
            mask_input: float32 [num_prompts, 1, 256, 256], `low_res_masks` of an earlier call; needs a graph that takes it.
            image: number of a held image; None is the current one. A launch has one image: `decode_many` takes several.
            masks: "best" (one per prompt, by SAM's rule), "all", or "device": all, left on the GPU.
            bits: give masks as bool instead of logits; or "packed": eight pixels to a byte, from a graph with `mask_bits`.
                Of such a graph only bits are copied, and `low_res_masks` is None; any other is thresholded on the host.
            image_size: (height, width) of the original image, for full-resolution graphs.
            timeout: seconds to wait for a free slot; 0 raises at once, None waits for ever.

        Raises:
            ContractError: prompts that do not fit, no image, or one that is not held any more.
            InferenceError: no slot became free, execution failed (the message says so if that closed the runner), or the runner
                is closed.
        """
        prompts, number, timeout = self._prompts(
            points, labels, boxes, mask_input, masks, image=image, bits=bits, image_size=image_size, timeout=timeout
        )
        return self._submit(prompts, number, timeout)

    def decode_many(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        **asked: Unpack[Asked],
    ) -> Decoded:
        """As `decode`, for any number of prompts: in calls of at most the profile's maximum, overlapping as far as slots allow.

        `image` may name an image for each prompt, in any order: consecutive prompts on one image share a call.

        The result's arrays belong to the caller; `masks="device"` cannot be had here.

        Raises:
            ContractError, InferenceError: as `submit`.
        """
        if masks not in get_args(Masks):
            raise ContractError(
                f"masks is {masks!r}; decode_many gathers results on the host: use submit for any on the device"
            )
        count, tokens, given = rows_of_prompts(points, labels, boxes, mask_input)
        most = self.most_prompts(tokens, with_mask=mask_input is not None, image_size=asked.get("image_size"))
        timeout = asked.pop("timeout", None)
        current = self._images.image_id  # the images of one call stay, also where another thread sets one meanwhile
        images = [current if each is None else each for each in image_of_each(asked.pop("image", None), count)]
        return decode_many(functools.partial(self.submit, masks=masks, **asked), given, images, most, timeout)

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False, image_size: tuple[int, int] | None = None) -> int:
        """Largest number of prompts that one call takes, of `num_tokens` each: points, and two corners or one "not a point".

        Raises:
            InferenceError: the runner is closed.
        """
        return self._core.calls.most_prompts(num_tokens, with_mask=with_mask, image_size=image_size)

    def run(self, feed: Mapping[str, Array], *, copy: bool = True) -> dict[str, Array]:
        """Run one feed, as `trt_sam.runtime.interface.Runner.run`.

        Args:
            feed: arrays by input name, not changed; Meta's feed is taken too. `image_embeddings` may be left out after
                `set_image`; where it is given, it counts for this call only.
            copy: False gives views of the slot's page-locked memory, in the graph's own dtypes: valid until its next use,
                readable until they are dropped, also after `close`.

        Returns:
            Every output by name: float32 arrays (`mask_bits` uint8) that belong to the caller, or the views.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed (the message says so if that closed the runner), or the runner is closed.
        """

        def read(plan: Plan) -> dict[str, Array]:
            return {name: as_given(array, copy=True) if copy else array for name, array in plan.outputs().items()}

        return self._collect(feed, read)

    def device_times(self, feed: Mapping[str, Array], count: int) -> list[float]:
        """Run one feed `count` times (after some that do not count) and time the inference alone, without copies.

        Returns milliseconds between CUDA events before and after each. All are queued at once, so that the GPU goes from one to
        the next and the times are its own: waited for one by one, each would begin with the wait for Python's launch.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed, or the runner is closed.
        """
        return self._collect(feed, lambda plan: plan.device_times(count), alone=True)

    def _prompts(
        self,
        points: Numbers,
        labels: Numbers,
        boxes: Numbers,
        mask_input: Numbers,
        masks: str,
        *,
        image: int | Sequence[int] | None = None,
        bits: Bits = False,
        image_size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> tuple[Prompts, int, float | None]:
        """A call's prompts, the number of its image, and how long it may wait for a slot."""
        calls = self._core.calls
        prompts = calls.prompts(points, labels, boxes, mask_input, masks, bits=bits, image_size=image_size)
        if image is not None and not isinstance(image, int | np.integer):
            raise ContractError(f"image is {image!r}: a launch has one image; decode_many takes one for each prompt")
        return prompts, self._images.image_id if image is None else image, timeout

    def _submit(self, prompts: Prompts, image: int, timeout: float | None) -> Submission[Any]:
        return self._dispatch.submit(prompts, image, timeout, self._give_back)

    def _collect(self, feed: Mapping[str, Array], read: Callable[[Plan], Result], *, alone: bool = False) -> Result:
        """Run a feed, and give what `read` gives of its plan."""
        core = self._core
        core.check_open()
        checked = core.calls.feed(feed, has_image=self._images.image_id > 0)
        submission = self._dispatch.submit(
            checked.prompts, self._images.image_id, None, self._give_back, embedding=checked.embedding, alone=alone
        )
        return submission.collect(read)

    def _give_back(self, lease: Lease, error: BaseException | None) -> None:
        """Of the runner, not the core: a call that is under way keeps its runner from being dropped."""
        self._core.give_back(lease, error)
