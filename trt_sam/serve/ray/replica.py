"""`Replica`: a runner with the embeddings of some pictures, which clicks are brought to; `application` shows it to Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.engine.manifest import ONNX_RUNTIME, open_manifest
from trt_sam.runtime.onnx_encoder import OnnxEncoder
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.prompt_tokens import Prompt
from trt_sam.runtime.set_graphs import graphs_of_set
from trt_sam.serve.faults import Refusal, bad_prompt
from trt_sam.serve.model import Model
from trt_sam.serve.pictures import picture_of, scaled
from trt_sam.serve.ray.pictures import PictureFolder
from trt_sam.serve.requests import masks_request
from trt_sam.serve.segmentations import candidates, masks_of
from trt_sam.serve.settings import ServeSettings

__all__ = ["Clicks", "Decoded", "Replica", "Resident", "open_model", "runs_on_gpu"]

FloatArray = npt.NDArray[np.float32]
Result = TypeVar("Result")
Clicks = tuple["Resident", list[Prompt]]
"""What is decoded together: prompts on one picture."""
Decoded = tuple[FloatArray, FloatArray] | Refusal


class Resident:
    """A picture whose embedding the runner holds; Ray calls `__del__` of the least recently used."""

    def __init__(self, number: int, size: tuple[int, int], forget: Callable[[int], Any]) -> None:
        """Hold image `number` of a picture of `size` (height, width)."""
        self.number, self.size, self._forget = number, size, forget
        self._held = True

    def __del__(self) -> None:
        if self._held:
            self._held = False
            self._forget(self.number)


class Replica:
    """One process of the deployment. The runner has a thread of its own."""

    def __init__(self, folder: str, pictures: str, *, images: int, threads: int | None) -> None:
        """Open the set in `folder` and warm it up."""
        self._settings = ServeSettings(images=images)
        self._pictures = PictureFolder(pictures)
        self._model = open_model(folder, images=images, threads=threads)
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="trt_sam.serve.ray")
        self._model.warm_up()

    async def load(self, name: str) -> Resident:
        """Read the picture and embed it; Refusal where there is no such picture."""
        rgb, size = await asyncio.to_thread(self._decoded, name)
        return Resident(await self._on_runner(self._model.add, rgb), size, self._forget)

    async def masks(self, resident: Resident, asked: dict[str, Any], decode: Callable[[Clicks], Any]) -> dict[str, Any]:
        """The answer to a request on a picture, whose prompts `decode` takes.

        Raises:
            Refusal: the request cannot be used, or the embedding is not held any more.
        """
        request = masks_request(asked, resident.size, self._settings)
        if request.mask is not None:
            raise bad_prompt("a deployment keeps no earlier masks, as the next click may reach another replica; leave mask out")
        decoded: Decoded = await decode((resident, request.prompts))
        if isinstance(decoded, Refusal):
            raise decoded
        low_res, iou = candidates(*decoded, request.output)
        flat = low_res.reshape(-1, *low_res.shape[2:])
        made = await asyncio.to_thread(masks_of, flat, resident.size, request.format)
        each = low_res.shape[1]
        results = []
        for row, scores in enumerate(iou):
            masks = made[row * each : (row + 1) * each]
            found = [{"score": round(float(score), 5), **mask} for score, mask in zip(scores, masks, strict=True)]
            results.append({"masks": found, "best": int(scores.argmax())})
        return {"results": results}

    async def decode(self, clicks: Sequence[Clicks]) -> list[Decoded]:
        """The logits and scores of several requests; those on one picture are one call of the decoder."""
        return await self._on_runner(self._decode, clicks)

    def _decode(self, clicks: Sequence[Clicks]) -> list[Decoded]:
        found: dict[int, Decoded] = {}
        groups: dict[int, list[int]] = {}
        for place, (resident, _) in enumerate(clicks):
            groups.setdefault(resident.number, []).append(place)
        for number, places in groups.items():
            prompts = [prompt for place in places for prompt in clicks[place][1]]
            try:
                low_res, iou = self._model.decode(number, prompts, clicks[places[0]][0].size)
            except Refusal as refusal:
                found |= dict.fromkeys(places, refusal)
                continue
            start = 0
            for place in places:
                rows = slice(start, start + len(clicks[place][1]))
                found[place] = low_res[rows], iou[rows]
                start = rows.stop
        return [found[place] for place in range(len(clicks))]

    def _decoded(self, name: str) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        rgb = picture_of(self._pictures.get(name), self._settings.pixels)
        return scaled(rgb), (rgb.shape[0], rgb.shape[1])

    async def _on_runner(self, work: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._runner, work, *args)

    def _forget(self, number: int) -> None:
        with contextlib.suppress(RuntimeError):  # the process ends, and its thread has
            self._runner.submit(self._model.drop, number)


def open_model(folder: str, *, images: int, threads: int | None) -> Model:
    """The set in `folder`: engines on the GPU that Ray gave to this process, graphs on the CPU."""
    room = (images + 1) * EMBEDDING_BYTES
    if not runs_on_gpu(folder):
        return Model(OnnxRunner(folder, threads=threads, image_bytes=room), Path(folder).name)
    from trt_sam.runner import DecoderRunner

    runner = DecoderRunner.open(folder, image_bytes=room)
    try:
        takes_photos = getattr(runner, "takes_photos", False)
        encoder = None if takes_photos else OnnxEncoder(graphs_of_set(folder)["encode"], threads=threads)
        return Model(runner, Path(folder).name, encoder=encoder)
    except BaseException:
        runner.close()
        raise


def runs_on_gpu(folder: str) -> bool:
    """Whether the set has engines."""
    return open_manifest(folder, verify=False).flavour != ONNX_RUNTIME
