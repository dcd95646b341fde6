"""What callers give, turned into calls: shapes checked, engine and bucket chosen, each kind of call remembered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner.call import EVERY_OUTPUT, PACKED, Call
from trt_sam.runner.engine import Engine
from trt_sam.runner.plans.layout import Bucket, Buckets
from trt_sam.runner.plans.plan import Plan
from trt_sam.runner.slot import Slot
from trt_sam.runtime.call.decoded import Bits
from trt_sam.runtime.call.given import given_prompts, height_and_width
from trt_sam.runtime.interface import checked_inputs

__all__ = ["CallMaker", "Feed", "Prompts"]

Array = npt.NDArray[Any]
Kind = tuple[Any, ...]
"""The fields of a `Call`: cheaper to look up than the call itself."""
Known = tuple[Engine, Bucket, Call]
"""What a kind of call is executed as."""

_MASKS = ("best", "all", "device")
_BITS = (False, True, PACKED)
_MOST_PLANS = 512
"""Kinds of calls that a slot remembers; image sizes make more of them than anybody needs again."""


@dataclass(slots=True)
class Prompts:
    """Checked for shape; the values are checked when they are in the slot."""

    kind: Kind
    known: Known
    points: Array | None
    labels: Array | None
    boxes: Array | None
    mask_input: Array | None
    has_mask: Array | float = 1.0

    def fill(self, plan: Plan) -> None:
        """Write them into the plan's slot; raises ContractError for values that cannot be used."""
        plan.fill(self.points, self.labels, self.boxes)
        if self.mask_input is not None:
            plan.fill_mask(self.mask_input, self.has_mask)


@dataclass(slots=True)
class Feed:
    """A checked feed of `run`: raw tokens, perhaps with an image of its own."""

    prompts: Prompts
    embedding: Array | None


class CallMaker:
    """Args: the engines with their buckets."""

    def __init__(self, engines: Sequence[tuple[Engine, Buckets]]) -> None:
        self._engines = sorted(engines, key=lambda pair: len(pair[0].inputs))
        self._known: dict[Kind, Known] = {}
        self._plans: dict[Slot, dict[Kind, Plan]] = {}

    def prompts(
        self,
        points: Any,
        labels: Any,
        boxes: Any,
        mask_input: Any,
        masks: str,
        *,
        bits: Bits,
        image_size: tuple[int, int] | None,
    ) -> Prompts:
        """Arguments as `DecoderRunner.submit`; raises ContractError for shapes that do not fit."""
        given = given_prompts(points, labels, boxes, mask_input)
        size = None if image_size is None else height_and_width(image_size)
        kind = (given.count, given.num_points, given.tail, masks, bits, mask_input is not None, size)
        try:
            known = self._find(kind)
        except TypeError as error:  # a list, say, which cannot be looked up
            raise ContractError(f"masks is {masks!r}, bits is {bits!r}; they must be names, or True and False") from error
        return Prompts(kind, known, given.points, given.labels, given.boxes, given.mask_input)

    def feed(self, feed: Mapping[str, Array], *, has_image: bool) -> Feed:
        """Check a feed of `run`; raises ContractError where it does not fit."""
        wanted = bool(np.any(np.asarray(feed.get("has_mask_input", feed.get("mask_input") is not None)) != 0))
        engine, _ = self._engines[-1 if wanted else 0]
        if "has_mask_input" not in feed and "mask_input" in feed:
            engine, _ = self._engines[-1]  # whose check says what is missing
        checked = checked_inputs(feed, engine.inputs, engine.limits, has_image=has_image)
        points, mask_input = checked["point_coords"], checked.get("mask_input")
        size = tuple(int(n) for n in checked["orig_im_size"]) if "orig_im_size" in checked else None
        kind = (*points.shape[:2], "", EVERY_OUTPUT, False, mask_input is not None, size)
        known = self._find(kind, engine)
        has_mask = checked.get("has_mask_input", 0.0)
        prompts = Prompts(kind, known, points, checked["point_labels"], None, mask_input, has_mask)
        return Feed(prompts, checked.get("image_embeddings"))

    def plan(self, slot: Slot, kind: Kind, known: Known) -> Plan:
        """The slot's plan for a kind of call, made at the first one: in the device's context."""
        plans = self._plans.get(slot) or self._plans.setdefault(slot, {})
        plan = plans.get(kind)
        if plan is None:
            engine, bucket, call = known
            if len(plans) >= _MOST_PLANS:
                plans.clear()
            plan = plans[kind] = Plan(slot, engine, bucket, call)
        return plan

    def warm_up_kinds(
        self, sizes: Sequence[tuple[int, int]] | None, image_size: tuple[int, int] | None
    ) -> list[tuple[Kind, Known]]:
        """Kinds of calls that use the buckets for these (num_prompts, num_tokens), or all buckets, of each engine: every
        choice of results, the one whose `masks` is "all" first.

        Raises:
            ContractError: a size beyond the profiles.
        """
        kinds: dict[tuple[Engine, Kind], Known] = {}
        for engine, buckets in self._engines:
            names = {spec.name for spec in engine.inputs}
            wanted = [(b.num_prompts, b.num_points) for b in buckets.all] if sizes is None else list(sizes)
            if min((n for pair in wanted for n in pair), default=1) < 1:
                raise ContractError(f"sizes are {wanted}, must be (num_prompts, num_tokens), both 1 or more")
            size = image_size
            if size is None and "orig_im_size" in names:
                size = (engine.profiles[0]["height"][1], engine.profiles[0]["width"][1])
            results: list[tuple[str, Bits]] = [("all", False), ("best", False), ("device", False)]
            if any(spec.name == "mask_bits" for spec in engine.outputs):
                results += [("all", PACKED), ("best", PACKED)]
            for (count, tokens), (masks, bits) in itertools.product(wanted, results):
                kind: Kind = (count, tokens, "", masks, bits, "mask_input" in names, size)
                kinds[engine, kind] = self._find(kind, engine)  # profiles overlap: many a size comes twice
        return [(kind, known) for (_, kind), known in kinds.items()]

    def most_prompts(self, num_tokens: int, *, with_mask: bool, image_size: tuple[int, int] | None = None) -> int:
        """Largest number of prompts in one call of `num_tokens` each; of any size, where no profile takes so many tokens."""
        if not self._engines:
            raise InferenceError("the runner is closed; open a new one")
        profiles = self._engines[-1 if with_mask else 0][0].profiles
        sizes = {"num_points": num_tokens}
        if image_size is not None:
            sizes |= dict(zip(("height", "width"), height_and_width(image_size), strict=True))
        taking = [each for each in profiles if all(each[dim][1] >= size for dim, size in sizes.items() if dim in each)]
        return max(limits["num_prompts"][1] for limits in taking or profiles)

    def clear(self) -> None:
        """Drop the engines and the plans, which hold memory of their slots."""
        self._engines.clear()
        self._plans.clear()
        self._known.clear()

    def _find(self, kind: Kind, engine: Engine | None = None) -> Known:
        return self._known.get(kind) or self._learn(kind, engine)

    def _learn(self, kind: Kind, engine: Engine | None) -> Known:
        count, num_points, tail, masks, bits, with_mask, size = kind
        if masks not in _MASKS and engine is None:
            raise ContractError(f"masks is {masks!r}, must be one of {', '.join(_MASKS)}")
        if bits not in _BITS:
            raise ContractError(f"bits is {bits!r}, must be True, False or {PACKED!r}")
        if bits and bits != PACKED and masks == "device":
            raise ContractError(f'bits are made on the host: ask for masks="best" or "all", or for bits={PACKED!r}')
        if not self._engines:
            raise InferenceError("the runner is closed; open a new one")
        if engine is None:
            engine = self._engines[-1 if with_mask else 0][0]
        names = {spec.name for spec in engine.inputs}
        if with_mask and "mask_input" not in names:
            raise ContractError("this engine takes no mask_input; build one with --decode-mask")
        if size is None and "orig_im_size" in names:
            raise ContractError("this graph gives masks at the original size: say image_size, (height, width)")
        if size is not None and "orig_im_size" not in names:
            raise ContractError("this graph gives 256 x 256 masks and takes no image_size; leave it out")
        if bits == PACKED and all(spec.name != "mask_bits" for spec in engine.outputs):
            raise ContractError("this engine packs no bits; build one with --mask-bits, or ask for bits=True")
        call = Call(count, num_points, tail, masks, bits, with_mask, size)
        sizes = {"num_prompts": count, "num_points": max(1, call.num_tokens)}
        if size is not None:
            sizes |= {"height": size[0], "width": size[1]}
        buckets = next(found for each, found in self._engines if each is engine)
        if len(self._known) >= _MOST_PLANS:
            self._known.clear()
        # Returned, not looked up again: another thread's call may clear the table at any moment.
        self._known[kind] = known = (engine, buckets.fitting(sizes), call)
        return known
