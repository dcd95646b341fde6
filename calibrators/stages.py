"""`CalibrationStages`: progress of a calibration's stages as one fraction, whatever each of them counts."""

from __future__ import annotations

from collections.abc import Mapping

from trt_sam.progress import Progress

__all__ = ["CalibrationStages"]


class CalibrationStages:
    """Progress of named stages; itself a `collect.Progress`, whose phases are stages."""

    def __init__(self, progress: Progress | None, weights: Mapping[str, float]) -> None:
        """Tell `progress`; `weights` say in order which stages there are, and about how long they take."""
        self._progress, self._weights = progress, weights
        self._best = 0.0

    def start(self, stage: str) -> None:
        """Begin a stage that counts nothing."""
        self(stage, 0, 1)

    def finish(self) -> None:
        """Say that everything is done."""
        if self._progress is not None:
            self._progress(1.0, "done")

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many of `total` steps of a stage are done."""
        if self._progress is None:
            return
        names = list(self._weights)
        before = sum(self._weights[name] for name in names[: names.index(stage)])
        share = min(1.0, done / total) if total else 0.0
        # A stage may come twice ("auto"): the bar then waits.
        self._best = max(self._best, (before + share * self._weights[stage]) / sum(self._weights.values()))
        self._progress(self._best, stage)
