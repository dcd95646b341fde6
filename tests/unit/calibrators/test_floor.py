"""The floor under entropy: what it may clip is what masks on held-back images bear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from calibrators import floor
from calibrators.floor import Floor, entropy_floor
from calibrators.trials import Score
from trt_sam.errors import InputError

LARGEST = {"a": 10.0, "b": 10.0, "c": 10.0}
ENTROPY = {"a": 5.0, "b": 6.0, "c": 11.0}


class Feeds:
    def __init__(self, images: int = 4) -> None:
        self.images = images

    def split(self, *_: Any, **__: Any) -> tuple[Feeds, Feeds]:
        if self.images < 2:
            raise InputError("one image")
        return Feeds(self.images - 1), Feeds(1)

    def with_sizes(self) -> list[Any]:
        return []


class FakeCalibration:
    """Three tensors; the graph with some ranges is these ranges."""

    plain = None
    largest = LARGEST

    def __init__(self, images: int = 4) -> None:
        self.feeds = Feeds(images)

    def on(self, feeds: Feeds) -> FakeCalibration:
        return FakeCalibration(feeds.images)

    def ranges(self, calibrators: Mapping[str, str]) -> dict[str, float]:
        return {name: ENTROPY[name] if each == "entropy" else 1.1 * LARGEST[name] for name, each in calibrators.items()}

    def quantized(self, amax: Mapping[str, float]) -> Mapping[str, float]:
        return amax


class FakeTrials:
    """Clipping "b" costs masks, clipping "a" does not; "flips": it makes a clear flip."""

    hurt = "b"
    flips = False

    def __init__(self, *_: Any) -> None:
        pass

    def score(self, amax: Mapping[str, float]) -> Score:
        hurt = amax[self.hurt] < LARGEST[self.hurt]
        loss = 0.01 * (hurt and not self.flips)
        return Score(0.999 - loss, 0.99 - loss, 0, int(hurt and self.flips), 32, 0.99)


def decide(monkeypatch: pytest.MonkeyPatch, images: int = 4, **facts: Any) -> Floor:
    monkeypatch.setattr(floor, "Trials", type("Trials", (FakeTrials,), facts))
    return entropy_floor(FakeCalibration(images), dict.fromkeys(LARGEST, "entropy"))  # type: ignore[arg-type]


@pytest.mark.parametrize("flips", [False, True])
def test_a_tensor_is_clipped_only_where_masks_do_not_move(monkeypatch: pytest.MonkeyPatch, flips: bool) -> None:
    made = decide(monkeypatch, flips=flips)
    # "c" is not clipped at all, and nothing is tried for it.
    assert {row.tensor: row.clipped for row in made.rows} == {"a": True, "b": False}
    assert made.calibrators(dict.fromkeys(LARGEST, "entropy")) == {"a": "entropy", "b": "max", "c": "entropy"}


def test_one_image_cannot_judge_so_nothing_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decide(monkeypatch, images=1)
    assert [row.clipped for row in made.rows] == [False, False]
    assert made.unclipped is None


def test_other_calibrators_have_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "Trials", None)
    assert entropy_floor(FakeCalibration(), dict.fromkeys(LARGEST, "percentile")) == Floor()  # type: ignore[arg-type]
