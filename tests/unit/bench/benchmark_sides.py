"""Sides that the benchmark's tests open in real workers: quick, and wrong in the way that each test asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_sam.errors import InputError


class FakeSide:
    def __init__(
        self, *, offset: float = 0.0, masks: int = 4, device: bool = False, fail_at: int = 0, die_after: int = -1, log: str = ""
    ) -> None:
        self.about = {"runtime": "fake", "device": "none", "precision": "fp32", "call": "nothing but a nap"}
        self._offset, self._masks, self._device, self._fail_at = offset, masks, device, fail_at
        self._die_after, self._log = die_after, log
        self._prompts = 0

    def load(self, feed: Mapping[str, Any]) -> None:
        self._prompts = len(feed["point_labels"])
        if self._prompts == self._fail_at:
            raise InputError(f"no more than {self._fail_at - 1} prompts")

    def call(self) -> tuple[np.ndarray, np.ndarray]:
        if self._die_after == 0:
            os._exit(3)
        self._die_after -= 1
        if self._log:
            with open(self._log, "a") as file:
                file.write(f"{self._offset} {self._prompts}\n")
        time.sleep(0.001)
        print("libraries print to standard output")
        logits = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1) + np.ones((self._prompts, 4, 8, 8), np.float32)
        return logits[:, -self._masks :] + np.float32(self._offset), np.zeros((self._prompts, self._masks), np.float32)

    def device_ms(self, count: int) -> list[float] | None:
        return [0.5] * count if self._device else None

    def close(self) -> None: ...


class BestSide(FakeSide):
    """Its calls for the best mask take longer than the others: they cannot be mistaken for them."""

    def call_best(self) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.02)
        masks, iou = self.call()
        return masks[:, :1], iou[:, :1]


class BitsSide(BestSide):
    def call_bits(self) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.02)
        return self.call_best()


class SlowSide(FakeSide):
    def call(self) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(600)
        raise AssertionError


def open_broken() -> FakeSide:
    raise RuntimeError("the compiler is missing\nand much more")
