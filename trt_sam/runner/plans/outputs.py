"""What a plan copies from the GPU, and what it makes of it: one small class for each thing that may be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam.contract import TensorSpec
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.runner.call import EVERY_OUTPUT, Call, Decoded, DecodedOnDevice
from trt_sam.runner.plans.layout import Layout, rows_view, view
from trt_sam.runner.plans.pixels import Pixels, pixels_for, shown_in
from trt_sam.runner.slot import Slot
from trt_sam.runtime.call.decoded import chosen_mask

__all__ = ["Download", "Outputs", "outputs_for"]

Array = npt.NDArray[Any]
Download = tuple[Array, int]
"""Page-locked bytes, and the device address that they are copied from."""

_SMALL_GAP = 8192
"""Bytes: a copy of its own costs more than so many that nobody asked for. The bits of an absent prompt are as many."""


class Outputs(Protocol):
    """What a call gives."""

    views: dict[str, Array]
    """Every output by name, in page-locked memory; of `run`, all are copied."""
    downloads: list[Download]
    """Copies that every such call makes, neighbours joined."""

    @property
    def results(self) -> Decoded | DecodedOnDevice:
        """Where the results will be; valid after `finish`."""

    def finish(self) -> None:
        """Complete `results`, once the slot has waited."""


def outputs_for(slot: Slot, specs: Iterable[TensorSpec], layout: Layout, call: Call, tokens: Array) -> Outputs:
    """The outputs of a call in a slot; `tokens` are the labels in its input block, by which the best mask is chosen."""
    block = _Block(slot, layout, {spec.name: spec.dtype for spec in specs}, call.num_prompts)
    if call.masks == "device":
        return _OnDevice(block, bool(call.bits))
    if call.masks == EVERY_OUTPUT:
        return _EveryOutput(block)
    names = frozenset(block.views)
    pixels = pixels_for(call.bits, names, block.views[shown_in(names)].shape[3])
    if call.masks == "best" and block.views["iou_predictions"].shape[1] > 1:
        return _BestMasks(block, pixels, tokens)
    return _AllMasks(block, pixels)


class _Block:
    """Where the outputs of a bucket lie, of as many prompts as a call has."""

    def __init__(self, slot: Slot, layout: Layout, dtypes: Mapping[str, str], rows: int) -> None:
        self.slot = slot
        self.dtypes = dtypes
        self.rows = rows
        self.offsets = {name: at for name, at in layout.offsets.items() if name in dtypes}
        self.views = {name: view(slot.host_out, layout, name, dtype, rows) for name, dtype in dtypes.items()}
        self.addresses = {name: slot.device_out.address + at for name, at in self.offsets.items()}

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Copies of the rows that were asked, neighbours joined; what little lies between them goes along."""
        spans: list[list[int]] = []
        for name in (each for each in self.offsets if each in set(names)):
            start = self.offsets[name]
            end = start + self.views[name].nbytes
            if spans and start - spans[-1][1] < _SMALL_GAP:
                spans[-1][1] = end
            else:
                spans.append([start, end])
        base = self.slot.device_out.address
        return [(self.slot.host_out[start:end], base + start) for start, end in spans]


class _OnDevice:
    def __init__(self, block: _Block, bits: bool) -> None:
        arrays = {
            name: DeviceArray(block.addresses[name], array.shape, block.dtypes[name], block.slot)
            for name, array in block.views.items()
        }
        self.views = block.views
        self.downloads: list[Download] = []
        shown = "mask_bits" if bits and "mask_bits" in arrays else shown_in(frozenset(arrays))
        self.results = DecodedOnDevice(arrays[shown], arrays["iou_predictions"], arrays["low_res_masks"])

    def finish(self) -> None:
        return None


class _EveryOutput:
    def __init__(self, block: _Block) -> None:
        self.views = block.views
        self.downloads = block.downloads(block.views)
        shown = block.views[shown_in(frozenset(block.views))]
        self.results = Decoded(shown, block.views["iou_predictions"], block.views["low_res_masks"])

    def finish(self) -> None:
        return None


class _AllMasks:
    def __init__(self, block: _Block, pixels: Pixels) -> None:
        self.views = block.views
        self.downloads = block.downloads({*pixels.wanted, "iou_predictions"})
        self._pixels = pixels
        masks, low_res = pixels.place(block.views, block.slot.scratch)
        self.results = Decoded(masks, block.views["iou_predictions"], low_res)

    def finish(self) -> None:
        self._pixels.make()


class _BestMasks:
    """The scores first; then, of the masks, those that SAM's rule selects: one more copy for each prompt, and a second wait."""

    def __init__(self, block: _Block, pixels: Pixels, tokens: Array) -> None:
        self.views = block.views
        self.downloads = block.downloads(["iou_predictions"])
        self._slot, self._pixels, self._tokens = block.slot, pixels, tokens
        self._iou = np.empty((block.rows, 1), np.float32)
        self._copies: list[tuple[list[Array], list[int]]] = []
        found = {name: self._one_each(block, name) for name in block.offsets if name in pixels.wanted}
        masks, low_res = pixels.place(found, block.slot.scratch)
        self.results = Decoded(masks, self._iou, low_res)

    def finish(self) -> None:
        scores = self.views["iou_predictions"]
        count = scores.shape[1]
        for row, (of_row, labels) in enumerate(zip(scores.tolist(), self._tokens.tolist(), strict=True)):
            best = chosen_mask(of_row, labels)
            self._iou[row, 0] = of_row[best]
            for targets, sources in self._copies:
                self._slot.stream.download(targets[row], sources[row * count + best])
        self._slot.work_begins()
        self._slot.wait()
        self._pixels.make()

    def _one_each(self, block: _Block, name: str) -> Array:
        """A view of one mask a prompt; where each comes from is kept."""
        start, (_, count, *one) = block.offsets[name], block.views[name].shape
        best = rows_view(block.slot.host_out, start, (block.rows, 1, *one), block.dtypes[name])
        nbytes = best[0].nbytes
        targets = [block.slot.host_out[start + row * nbytes :][:nbytes] for row in range(block.rows)]
        self._copies.append((targets, [block.addresses[name] + at * nbytes for at in range(block.rows * count)]))
        return best
