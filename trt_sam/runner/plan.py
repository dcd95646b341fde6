"""A plan: one kind of call in one slot, with every view it needs, so that calls like it allocate nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import (
    LABEL_ABSENT,
    LABEL_BACKGROUND,
    LABEL_BOX_END,
    LABEL_BOX_START,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
)
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.cuda.streams import Event
from trt_sam.errors import ContractError
from trt_sam.runner.call import EVERY_OUTPUT, PACKED, Call, Decoded
from trt_sam.runner.engine import Engine
from trt_sam.runner.layout import Bucket, Layout, rows_view, sizes_of, view
from trt_sam.runner.slot import Program, Slot
from trt_sam.runner.unpack import Unpacker

__all__ = ["Plan", "chosen_mask"]

Array = npt.NDArray[Any]

_THRESHOLD = 0.0
"""A pixel belongs to the mask where its logit is above this, as in SAM."""
_AHEAD = 3
"""Inferences that keep the GPU busy while those that are timed are queued."""
_FEW = 32
"""Numbers that Python looks through as fast as numpy."""
_SMALL_GAP = 8192
"""Bytes: a copy of its own costs more than so many that nobody asked for. The bits of an absent prompt are as many."""
_CLICKS = frozenset((float(LABEL_ABSENT), float(LABEL_BACKGROUND), float(LABEL_FOREGROUND)))
_TOKENS = _CLICKS | {float(LABEL_NOT_A_POINT), float(LABEL_BOX_START), float(LABEL_BOX_END)}


class Plan:
    """See the module. `fill` writes the inputs, `launch` queues, `Slot.wait` waits, `finish` gives the results."""

    def __init__(self, slot: Slot, engine: Engine, bucket: Bucket, call: Call) -> None:
        self.call = call
        self._slot = slot
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
        self._plan_outputs(engine, layout)
        # A bucket's own size is recorded with its copies. The sizes between share one recording of the inference.
        if call.num_prompts == bucket.num_prompts:
            copies = (self.upload.nbytes, *((source, target.nbytes) for target, source in self.downloads))
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
        if slot.current is not self:
            self._pad()
        if points is not None:
            self.points[...] = points
            self.labels[...] = labels
            allowed = _CLICKS if self.call.tail else _TOKENS
            for row in self.labels.tolist():
                if not allowed.issuperset(row):
                    self._refuse_label(row, allowed)
        if self.corners is not None:
            self.corners[...] = boxes
        # One prompt is cheaper to look through in Python.
        flat = self._one_prompt
        if not (np.isfinite(self._given, out=self._finite).all() if flat is None else all(map(isfinite, flat.tolist()))):
            raise ContractError("points or boxes hold NaN or infinity; every coordinate must be finite")
        slot.current = self

    def fill_mask(self, mask_input: Array, has_mask: Array | float) -> None:
        """Write and check the earlier masks, after `fill`; raises ContractError where one is not finite."""
        self.mask_input[...] = mask_input
        self.has_mask[...] = has_mask
        if not np.isfinite(self.mask_input, out=self._mask_finite).all():
            raise ContractError("mask_input holds NaN or infinity; every value must be finite")

    def launch(self, image: int | None, address: int) -> None:
        """Queue a call whose inputs are in the block: embedding if it is another image's, inputs, inference, results.

        After an error the slot must `forget`.

        Args:
            image: number of the image whose embedding lies at `address`; None: the slot has it already.
            address: in device memory.
        """
        slot = self._slot
        slot.pending = True
        if image != slot.image:
            slot.bring(image, address)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._queue()

    def rehearse(self) -> None:
        """Queue the inference on absent prompts; its results stay on the GPU. Under the runner's lock."""
        slot = self._slot
        slot.current = None
        slot.pending = True
        self._pad()
        self.program.record()
        slot.stream.upload(slot.device_in.address, self.upload)
        self.program.enqueue()

    def finish(self) -> Decoded:
        """The results, once the slot has waited; for the best of several masks one more copy, and a wait for it."""
        if self._choose:
            self._fetch_best()
        if self._make_bits is not None:
            self._make_bits()
        return self.results

    def device_times(self, count: int) -> list[float]:
        """Milliseconds of the inference alone, `count` times, without a gap between them on the GPU."""
        slot, marks = self._slot, list[Event]()
        slot.pending = True
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
            slot.pending = False
            return [then.elapsed_ms(first) for first, then in itertools.pairwise(marks)]

    def outputs(self) -> dict[str, Array]:
        """All outputs of the graph by name."""
        return self._views

    def _queue(self) -> None:
        stream = self._slot.stream
        stream.upload(self._slot.device_in.address, self.upload)
        if self.call.num_prompts == self.program.bucket.num_prompts:
            self.program.enqueue_unrecorded()  # under way into a recording, or never recorded
        else:
            self.program.enqueue()
        for target, source in self.downloads:
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

    def _refuse_label(self, row: list[float], allowed: frozenset[float]) -> None:
        wrong = next(label for label in row if label not in allowed)
        added = "; box corners and the -1 after clicks are added here, `run` takes raw tokens" if self.call.tail else ""
        known = ", ".join(f"{label:g}" for label in sorted(allowed))
        raise ContractError(f"labels hold {wrong:g}; allowed are {known}{added}")

    def _plan_outputs(self, engine: Engine, layout: Layout) -> None:
        slot, call, rows = self._slot, self.call, self.call.num_prompts
        dtypes = {spec.name: spec.dtype for spec in engine.outputs}
        self._views = {name: view(slot.host_out, layout, name, dtype, rows) for name, dtype in dtypes.items()}
        iou = self._views["iou_predictions"]
        shown = "masks" if "masks" in dtypes else "low_res_masks"
        packed = bool(call.bits) and "mask_bits" in dtypes
        self._choose = call.masks == "best" and iou.shape[1] > 1
        self._make_bits: Callable[[], object] | None = None
        self.downloads: list[tuple[Array, int]] = []
        if call.masks == "device":
            arrays = {
                name: DeviceArray(slot.device_out.address + layout.offsets[name], array.shape, dtypes[name], slot)
                for name, array in self._views.items()
            }
            self.results = Decoded(arrays["mask_bits" if packed else shown], arrays["iou_predictions"], arrays["low_res_masks"])
            return
        held = [name for name in layout.offsets if name in dtypes]
        if call.masks == EVERY_OUTPUT:
            wanted = held
        else:
            # Bits or logits, never both.
            wanted = [name for name in held if name == "iou_predictions" or (name == "mask_bits") == packed]
        if self._choose:
            self._downloaded(layout, ["iou_predictions"])
            found = self._best_rows(layout, dtypes, [name for name in wanted if name != "iou_predictions"])
            iou = self._best_iou = np.empty((rows, 1), np.float32)
        else:
            self._downloaded(layout, wanted)
            found = self._views
        if packed:
            masks = found["mask_bits"]
            if call.bits != PACKED:
                unpacker = Unpacker(masks, self._views[shown].shape[3], slot.scratch)
                masks, self._make_bits = unpacker.pixels, unpacker.unpack
        elif call.bits:
            masks = rows_view(slot.scratch, 0, found[shown].shape, "bool")
            self._make_bits = partial(np.greater, found[shown], _THRESHOLD, masks)
        else:
            masks = found[shown]
        self.results = Decoded(masks, iou, None if packed else found["low_res_masks"])

    def _best_rows(self, layout: Layout, dtypes: Mapping[str, str], names: list[str]) -> dict[str, Array]:
        """Views of one mask a prompt; where each comes from is left in `_rows`."""
        slot, rows = self._slot, self.call.num_prompts
        self._rows: list[tuple[list[Array], list[int]]] = []
        best = {}
        for name in names:
            start, (_, count, *one) = layout.offsets[name], self._views[name].shape
            best[name] = rows_view(slot.host_out, start, (rows, 1, *one), dtypes[name])
            nbytes = best[name][0].nbytes
            places = [start + row * nbytes for row in range(rows * count)]
            targets = [slot.host_out[at : at + nbytes] for at in places[:rows]]
            self._rows.append((targets, [slot.device_out.address + at for at in places]))
        return best

    def _downloaded(self, layout: Layout, names: list[str]) -> None:
        """Copies of the rows that were asked, neighbours joined; what little lies between them goes along."""
        spans: list[list[int]] = []
        for name in names:
            start = layout.offsets[name]
            end = start + self._views[name].nbytes
            if spans and start - spans[-1][1] < _SMALL_GAP:
                spans[-1][1] = end
            else:
                spans.append([start, end])
        base = self._slot.device_out.address
        self.downloads = [(self._slot.host_out[start:end], base + start) for start, end in spans]

    def _fetch_best(self) -> None:
        """Copy the mask that SAM's rule selects, for each prompt."""
        slot, iou = self._slot, self._views["iou_predictions"]
        count = iou.shape[1]
        for row, (scores, labels) in enumerate(zip(iou.tolist(), self._tokens.tolist(), strict=True)):
            best = chosen_mask(scores, labels)
            self._best_iou[row, 0] = scores[best]
            for targets, sources in self._rows:
                slot.stream.download(targets[row], sources[row * count + best])
        slot.pending = True
        slot.wait()


def chosen_mask(scores: Sequence[float], labels: Sequence[float]) -> int:
    """SAM's rule for one prompt: mask 0 from three tokens on, else the best of the others; absent points do not count.

    On lists, because arrays cost more than the rule. Its twins: `accuracy.metrics.best_masks`, `graph.export.select_best`.
    """
    tokens = len(labels) - labels.count(LABEL_ABSENT)
    return 0 if tokens > 2 else max(range(1, len(scores)), key=scores.__getitem__)
