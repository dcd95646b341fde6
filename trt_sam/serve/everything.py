"""Everything in a picture, searched in small parts between which clicks get their turn."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, TensorSpec
from trt_sam.formats.runs import Runs
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.runtime.interface import Runner
from trt_sam.serve.faults import ClientGoneError, Refusal
from trt_sam.serve.model import Model
from trt_sam.serve.requests import EverythingRequest
from trt_sam.serve.worker import RunnerWorker

__all__ = ["Everything", "Search"]

Array = npt.NDArray[Any]
_PROMPTS_PER_PART = 8
"""On a GPU more would be faster, but a click would wait longer for them."""


class Search:
    """One search: `future` gives the records of a mask generator, their `segmentation` as `Runs`; `stop` ends it early."""

    def __init__(self) -> None:
        self.future: Future[list[dict[str, Any]]] = Future()
        self.stopped = threading.Event()

    def stop(self) -> None:
        """End it at its next part; nothing happens where it is over."""
        self.stopped.set()
        self.future.cancel()


class Everything:
    """Searches, one at a time; each on a thread of its own, which waits for the runner's like everybody."""

    def __init__(self, model: Model, worker: RunnerWorker) -> None:
        self._model, self._worker = model, worker
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trt_sam.serve.everything")

    def search(self, image: int, size: tuple[int, int], asked: EverythingRequest) -> Search:
        """Begin, or wait for those before."""
        search = Search()
        self._pool.submit(self._run, search, image, size, asked)
        return search

    def close(self) -> None:
        """Finish what has begun or waits."""
        self._pool.shutdown()

    def _run(self, search: Search, image: int, size: tuple[int, int], asked: EverythingRequest) -> None:
        if search.stopped.is_set() or not search.future.set_running_or_notify_cancel():
            return
        try:
            runner = cast(Runner, _InParts(self._model, self._worker, image, search.stopped))
            generator = AutomaticMaskGenerator(
                runner,
                points_per_side=asked.points_per_side,
                pred_iou_thresh=asked.pred_iou_thresh,
                stability_score_thresh=asked.stability_score_thresh,
                box_nms_thresh=asked.box_nms_thresh,
                output_mode="coco_rle",
            )
            # The image is the one that the model holds; what goes in here is left out of the feed.
            records = generator.generate_from_embedding(np.zeros(EMBEDDING_SHAPE, np.float32), size)
            found = [{**record, "segmentation": Runs.from_coco(record["segmentation"])} for record in records]
        except BaseException as error:
            search.future.set_exception(error)
        else:
            search.future.set_result(found)


class _InParts:
    """The generator's runner: each call is a piece of work of the runner's thread, on an image that the model holds."""

    def __init__(self, model: Model, worker: RunnerWorker, image: int, stopped: threading.Event) -> None:
        self._model, self._worker, self._image, self._stopped = model, worker, image, stopped

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._model.runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._model.runner.outputs

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._model.runner.limits

    def most_prompts(self, tokens: int, **_: object) -> int:
        return min(_PROMPTS_PER_PART, self._model.most_prompts(tokens))

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        if self._stopped.is_set():
            raise ClientGoneError
        part = {name: array for name, array in feed.items() if name != "image_embeddings"}
        try:
            return self._worker.submit("everything", lambda: self._model.run(self._image, part)).result().value
        except Refusal as refusal:
            if refusal.code != "stopping":
                raise
            raise Refusal(503, "stopping", "the service was stopped in the middle of the search", retry_seconds=5) from None
