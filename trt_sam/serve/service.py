"""`Service`: what the requests of all protocols come down to. Its coroutines run in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from trt_sam.serve.budget import BodyBudget
from trt_sam.serve.call import Call
from trt_sam.serve.everything import Everything
from trt_sam.serve.faults import busy
from trt_sam.serve.images import HeldImage, Images
from trt_sam.serve.metrics import Metrics
from trt_sam.serve.model import Model
from trt_sam.serve.pictures import picture_of, picture_too_large, scaled
from trt_sam.serve.requests import EverythingRequest, MasksRequest
from trt_sam.serve.segmentations import candidates, described, masks_of
from trt_sam.serve.settings import ServeSettings
from trt_sam.serve.worker import Done, Lane, RunnerWorker

__all__ = ["Service"]

_log = logging.getLogger(__name__)
FloatArray = npt.NDArray[np.float32]
Result = TypeVar("Result")

_SWEEP_SECONDS = 5.0


class Service:
    """One model, its images and its queue."""

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        """Serve `model`, which is closed at the end of `running`."""
        self.model, self.settings, self.metrics = model, settings, Metrics()
        self.budget = BodyBudget(settings.bodies_bytes)
        # Half of the time for an answer: the other lanes take their share, and 503 after it helps nobody.
        wait = settings.answer_seconds / 2
        self.worker = RunnerWorker(
            {
                "clicks": Lane("prompts", 4, settings.waiting_clicks, wait),
                "images": Lane("pictures", 2, settings.waiting_images, wait),
                "everything": Lane("parts of everything", 1, 4),
                "warm-up": Lane("warm-ups", 8, 1),
            }
        )
        self.images = Images(self._forget, most=settings.images, seconds=settings.image_seconds, masks=settings.masks_per_image)
        self.ready = False
        self._pictures = 0
        """Pictures that are being decoded or wait for the encoder."""
        self._everythings = 0
        self._everything = Everything(model, self.worker)
        # Pillow and numpy let go of the interpreter, so as many as there are cores; two where there is one, so that a large
        # picture does not hold a click up.
        self._threads = ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0))), thread_name_prefix="trt_sam.serve")
        for lane in ("clicks", "images", "everything"):
            self.metrics.watch_queue(lane, lambda lane=lane: self.worker.waiting(lane))  # type: ignore[misc]
        self.metrics.watch("trt_sam_images_resident", "Images that are kept.", lambda: len(self.images))
        self.metrics.watch("trt_sam_images_evicted", "Images that made room for others.", lambda: self.images.evicted)
        self.metrics.watch("trt_sam_memory_bytes", "Resident memory of the process.", _resident_bytes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up, serve, and at the end finish what is under way."""
        self.worker.start()
        chores = [asyncio.create_task(self._warm_up()), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            self.ready = False
            for chore in chores:
                chore.cancel()
            await asyncio.to_thread(self._close)

    async def add_image(self, call: Call, request: Request, data: bytes) -> HeldImage:
        """Decode, embed and keep a picture.

        Raises:
            Refusal: it is none, too large, or too many wait.
        """
        if self._pictures > self.settings.waiting_images:
            raise busy("pictures", self._pictures * 0.5)
        self._pictures += 1
        try:
            rgb, size = await call.timed("picture", self.threaded, self._decoded, data)
            return await self._embedded(call, request, rgb, size)
        finally:
            self._pictures -= 1

    async def add_picture(self, call: Call, request: Request, rgb: npt.NDArray[np.uint8]) -> HeldImage:
        """As `add_image`, of pixels uint8 [height, width, 3] RGB."""
        if rgb.shape[0] * rgb.shape[1] > self.settings.pixels:
            raise picture_too_large(self.settings.pixels)
        small = await call.timed("picture", self.threaded, scaled, rgb)
        return await self._embedded(call, request, small, (rgb.shape[0], rgb.shape[1]))

    async def decode(
        self, call: Call, request: Request, image: HeldImage, asked: MasksRequest
    ) -> tuple[FloatArray, FloatArray]:
        """Logits float32 [prompts, candidates, 256, 256] and scores float32 [prompts, candidates], as asked."""
        earlier = None if asked.mask is None else image.mask(asked.mask)[None, None]
        work = self.worker.submit("clicks", lambda: self.model.decode(image.number, asked.prompts, image.size, earlier))
        low_res, iou = await call.finished(request, work, "decode", self.settings.answer_seconds)
        return candidates(low_res, iou, asked.output)

    async def masks(self, call: Call, request: Request, image: HeldImage, asked: MasksRequest) -> list[dict[str, Any]]:
        """The masks of each prompt: for each `masks`, and `best`, the place of the one with the highest score."""
        low_res, iou = await self.decode(call, request, image, asked)
        flat = low_res.reshape(-1, *low_res.shape[2:])
        made = await call.timed("masks", self.threaded, masks_of, flat, image.size, asked.format)
        # An answer to many boxes has more masks than are kept.
        keeps = asked.keep and len(flat) <= self.settings.masks_per_image
        each = low_res.shape[1]
        results = []
        for row in range(len(low_res)):
            masks = []
            for place in range(each):
                logits = np.array(low_res[row, place], np.float32) if keeps else None
                mask_id = None if logits is None else self.images.keep_mask(image, logits)
                masks.append({"id": mask_id, "score": round(float(iou[row, place]), 5), **made[row * each + place]})
            results.append({"masks": masks, "best": int(iou[row].argmax())})
        return results

    async def everything(
        self, call: Call, request: Request, image: HeldImage, asked: EverythingRequest
    ) -> list[dict[str, Any]]:
        """All masks that the model is sure of, the largest first."""
        if self._everythings > self.settings.waiting_everything:
            raise busy("requests for everything", self._everythings * 5.0)
        self._everythings += 1
        search = self._everything.search(image.number, image.size, asked)
        try:
            began = time.perf_counter()
            found = await call.waited(request, asyncio.wrap_future(search.future), self.settings.everything_seconds)
            call.took("decode", time.perf_counter() - began)
        finally:
            search.stop()
            self._everythings -= 1
        return await call.timed("masks", self.threaded, _records_of, found, asked.format)

    async def threaded(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run `work` beside the event loop, on a thread of few."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _decoded(self, data: bytes) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        rgb = picture_of(data, self.settings.pixels)
        return scaled(rgb), (rgb.shape[0], rgb.shape[1])

    async def _embedded(self, call: Call, request: Request, rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> HeldImage:
        work = self.worker.submit("images", lambda: self._add(rgb))
        try:
            number = await call.finished(request, work, "embed", self.settings.answer_seconds)
        except BaseException:
            work.add_done_callback(self._forget_unclaimed)
            raise
        return self.images.add(number, size)

    def _forget_unclaimed(self, work: Future[Done[int]]) -> None:
        """Of a picture that was embedded for nobody."""
        if not work.cancelled() and work.exception() is None:
            self._forget(work.result().value)

    def _add(self, rgb: npt.NDArray[np.uint8]) -> int:
        return self.model.add(rgb)

    def _forget(self, number: int) -> None:
        self.worker.later(lambda: self.model.drop(number))

    async def _warm_up(self) -> None:
        try:
            done = await asyncio.wrap_future(self.worker.submit("warm-up", self.model.warm_up))
        except Exception:
            _log.exception("the model failed at its first call; the service stays unready")
            return
        self.worker.expect("images", done.took)  # a picture is nearly all of it
        self.ready = True
        _log.info("ready")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.images.sweep()

    def _close(self) -> None:
        self._everything.close()
        self.images.clear()
        self.worker.close()
        self._threads.shutdown()
        self.model.close()


def _records_of(records: list[dict[str, Any]], format: str) -> list[dict[str, Any]]:
    return [
        {
            "score": round(record["predicted_iou"], 5),
            "stability_score": round(record["stability_score"], 5),
            "point": record["point_coords"][0],
            **described(record["segmentation"], format),
        }
        for record in sorted(records, key=lambda record: -record["area"])
    ]


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0
