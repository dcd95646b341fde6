"""A plan: one kind of call in one slot, with every view it needs, so that calls like it allocate nothing."""

from __future__ import annotations

import contextlib
import itertools
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT, LABEL_BOX_END, LABEL_BOX_START, LABEL_NOT_A_POINT
from trt_sam.cuda.streams import Event
from trt_sam.errors import ContractError
from trt_sam.runner.call import Call, Decoded, DecodedOnDevice
from trt_sam.runner.engine import Engine
from trt_sam.runner.images.residents import Resident
from trt_sam.runner.plans.layout import Bucket, Layout, rows_view, sizes_of, view
from trt_sam.runner.plans.outputs import outputs_for
from trt_sam.runner.program import Program
from trt_sam.runner.slot import Slot
from trt_sam.runtime.call.given import check_labels

__all__ = ["Plan"]

Array = npt.NDArray[Any]

_AHEAD = 3
"""Inferences that keep the GPU busy while those that are timed are queued."""
_FEW = 32
"""Numbers that Python looks through as fast as numpy."""


class Plan:
    """See the module. `fill` writes the inputs, `launch` queues, `Slot.wait` waits, `finish` gives the results."""

    def __init__(self, slot: Slot, engine: Engine, bucket: Bucket, call: Call) -> None:
        self.call = call
        self._slot = slot
        self._whole = call.num_prompts == bucket.num_prompts
        layout = Layout.of(engine.inputs, engine.outputs, sizes_of(bucket, call.height_width), engine.limits)
        self.program: Program = slot.program(engine, bucket, layout)
        prompts, points = call.num_prompts, call.num_points
        self._coords = view(slot.host_in, layout, "point_coords", "float32")
        self._labels = view(slot.host_in, layout, "point_labels", "float32")
        self._tokens = self._labels[:prompts, : call.num_tokens]
        self.points = self._coords[:prompts, :points]
        self.labels = self._labels[:prompts, :points]
        self.corners = self._coords[:prompts, points : points + 2] if call.tail == "corners" else None
        self._given = self._coords[:prompts, : call.num_tokens]
        self._finite = np.empty(self._given.shape, np.bool_)
        self._one_prompt = self._given.reshape(-1) if self._given.size <= _FEW and prompts == 1 else None
        self._has_mask: Array | None = None
        end = layout.offsets["point_labels"] + self._labels.nbytes
        if "mask_input" in layout.offsets:
            self._has_mask = view(slot.host_in, layout, "has_mask_input", "float32")
            self.has_mask = self._has_mask[:prompts]
            self.mask_input = view(slot.host_in, layout, "mask_input", "float32", prompts)
            self._mask_finite = rows_view(slot.scratch, 0, self.mask_input.shape if call.with_mask else (0,), "bool")
            end = layout.offsets["mask_input"] + self.mask_input.nbytes
        self._size = view(slot.host_in, layout, "orig_im_size", "int64") if call.height_width is not None else None
        self.upload: Array = slot.host_in[:end]
        self._outputs = outputs_for(slot, engine.outputs, layout, call, self._tokens)
        self._downloads = self._outputs.downloads
        # A bucket's own size is recorded with its copies. The sizes between share one recording of the inference.
        if self._whole:
            copies = (self.upload.nbytes, *((source, target.nbytes) for target, source in self._downloads))
            self._graph = self.program.record(copies, self._queue)
        else:
            self._graph = None
            self.program.record()

    def fill(self, points: Array | None, labels: Array | None, boxes: Array | None) -> None:
        """Write and check the prompts; shapes fit already. After an error the slot must `forget`.

        Raises:
            ContractError: a coordinate that is not finite, or a label that is not allowed.
        """
        slot = self._slot
        if not slot.is_padded_for(self):
            self._pad()
        if points is not None:
            self.points[...] = points
            self.labels[...] = labels
            check_labels(self.labels.tolist(), with_tail=bool(self.call.tail))
        if self.corners is not None:
            self.corners[...] = boxes
        # One prompt is cheaper to look through in Python.
        flat = self._one_prompt
        if not (np.isfinite(self._given, out=self._finite).all() if flat is None else all(map(isfinite, flat.tolist()))):
            raise ContractError("points or boxes hold NaN or infinity; every coordinate must be finite")
        slot.padded_for(self)

    def fill_mask(self, mask_input: Array, has_mask: Array | float) -> None:
        """Write and check the earlier masks, after `fill`; raises ContractError where one is not finite."""
        self.mask_input[...] = mask_input
        self.has_mask[...] = has_mask
        if not np.isfinite(self.mask_input, out=self._mask_finite).all():
            raise ContractError("mask_input holds NaN or infinity; every value must be finite")

    def launch(self, image: int | None, resident: Resident | None = None) -> None:
        """Queue a call whose inputs are in the block: embedding if it is another image's, inputs, inference, results.

        After an error the slot must `forget`.

        Args:
            image: number of the image that `resident` holds; None: the slot has the call's own already.
            resident: where it lies.
        """
        slot = self._slot
        slot.work_begins()
        if image is not None and resident is not None and not slot.has_image(image):
            slot.bring(image, resident)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._queue()

    def rehearse(self) -> None:
        """Queue the inference on absent prompts; its results stay on the GPU. Under the runner's lock."""
        slot = self._slot
        slot.padded_for(None)
        slot.work_begins()
        self._pad()
        self.program.record()
        slot.stream.upload(slot.device_in.address, self.upload)
        self.program.enqueue()

    @property
    def results(self) -> Decoded | DecodedOnDevice:
        """Where the results will be."""
        return self._outputs.results

    def finish(self) -> Decoded | DecodedOnDevice:
        """The results, once the slot has waited; for the best of several masks one more copy, and a wait for it."""
        self._outputs.finish()
        return self._outputs.results

    def device_times(self, count: int) -> list[float]:
        """Milliseconds of the inference alone, `count` times, without a gap between them on the GPU."""
        slot, marks = self._slot, list[Event]()
        slot.work_begins()
        with contextlib.ExitStack() as stack:
            for _ in range(count + 1):
                marks.append(Event(slot.device, timing=True))
                stack.callback(marks[-1].close)
            for _ in range(_AHEAD):
                self.program.enqueue()
            for index, mark in enumerate(marks):
                if index:
                    self.program.enqueue()
                mark.record(slot.stream)
            marks[-1].synchronize()
            slot.work_has_run()
            return [then.elapsed_ms(first) for first, then in itertools.pairwise(marks)]

    def outputs(self) -> dict[str, Array]:
        """All outputs of the graph by name."""
        return self._outputs.views

    def _queue(self) -> None:
        stream = self._slot.stream
        stream.upload(self._slot.device_in.address, self.upload)
        if self._whole:
            self.program.enqueue_unrecorded()  # under way into a recording, or never recorded
        else:
            self.program.enqueue()
        for target, source in self._downloads:
            stream.download(target, source)

    def _pad(self) -> None:
        self._coords.fill(0)
        self._labels.fill(LABEL_ABSENT)
        at, call = self.call.num_points, self.call
        if call.tail == "corners":
            self._tokens[:, at], self._tokens[:, at + 1] = LABEL_BOX_START, LABEL_BOX_END
        elif call.tail == "point":
            self._tokens[:, at] = LABEL_NOT_A_POINT
        if self._has_mask is not None:
            self._has_mask.fill(0)
            self.mask_input.fill(0)
        if self._size is not None:
            self._size[:] = call.height_width
