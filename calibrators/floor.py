"""The floor under entropy's ranges: it clips a tensor only where the masks of photographs that were held back do not move.

The search itself is the literature's (`thresholds`), and knows how often values occur, not what they are for: on SAM's
decoder it cut off the few large values that carry the masks' edges. The floor is ours, and `floor = false` (`--no-floor`)
takes it away. It asks for nothing where no value is clipped, as with the default shift and scale, which bring every channel
to its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calibrators.auto import TIE
from calibrators.calibration import Calibration
from calibrators.feeds import CalibrationFeeds
from calibrators.pictures import PictureFeeds
from calibrators.trials import HELD_OUT, TRIAL_IMAGES, Score, Trials, trial_feeds
from trt_sam.errors import InputError

__all__ = ["Floor", "FloorRow", "entropy_floor"]


@dataclass(frozen=True)
class FloorRow:
    """A tensor that entropy would clip."""

    tensor: str
    amax: float
    """Entropy's range."""
    largest: float
    """The largest |value| seen, beyond that range."""
    clipped: bool
    """Whether it may; else the tensor gets max's range."""
    score: Score | None
    """With this tensor clipped, beside those above it that may be; None where there was nothing to judge by."""


@dataclass(frozen=True)
class Floor:
    """What the floor decided."""

    rows: tuple[FloorRow, ...] = ()
    unclipped: Score | None = None
    """With max's ranges for all of `rows`; None where nothing is clipped, or there was nothing to judge by."""

    def calibrators(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """`wanted`, by activation, with "max" where entropy may not clip."""
        return {**wanted, **{row.tensor: "max" for row in self.rows if not row.clipped}}


def entropy_floor(work: Calibration, calibrators: Mapping[str, str]) -> Floor:
    """Decide which of the tensors that entropy would clip may be clipped.

    Ranges are those of all images; whether a tensor may be clipped is decided by a calibration on three quarters of them
    and the masks on the rest: their quality (`Score.quality`) may fall by `auto.TIE` in all, and no clear flip may come. Of
    one image alone nothing can be held back: nothing is clipped then.

    Args:
        work: on all images.
        calibrators: by activation of its products.

    Raises:
        CalibrationError: a tensor is 0 everywhere.
        InferenceError: ONNX Runtime cannot run a trial.
    """
    ranges = work.ranges({tensor: name for tensor, name in calibrators.items() if name == "entropy"})
    suspects = {tensor: amax for tensor, amax in ranges.items() if amax < work.largest[tensor]}
    if not suspects:
        return Floor()
    feeds = work.feeds
    assert not isinstance(feeds, PictureFeeds)  # the floor is for decoders, and judges by their prompts
    try:
        used, held_out = feeds.split(HELD_OUT, most=TRIAL_IMAGES)
    except InputError:
        return Floor(tuple(FloorRow(tensor, amax, work.largest[tensor], False, None) for tensor, amax in suspects.items()))
    return _judged(work, work.on(used), held_out, calibrators, suspects)


def _judged(
    work: Calibration,
    trial: Calibration,
    held_out: CalibrationFeeds,
    calibrators: Mapping[str, str],
    suspects: Mapping[str, float],
) -> Floor:
    trials = Trials(work.plain, trial_feeds(held_out.with_sizes()))
    chosen = {**calibrators, **dict.fromkeys(suspects, "max")}
    unclipped = trials.score(trial.quantized(trial.ranges(chosen)))
    rows = []
    for tensor, amax in suspects.items():
        score = trials.score(trial.quantized(trial.ranges({**chosen, tensor: "entropy"})))
        fine = score.quality >= unclipped.quality - TIE and score.clear_flips <= unclipped.clear_flips
        if fine:
            chosen[tensor] = "entropy"
        rows.append(FloorRow(tensor, amax, work.largest[tensor], fine, score))
    return Floor(tuple(rows), unclipped)
