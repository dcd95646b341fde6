"""How a command talks while it works: a line for each stage, one bar on a terminal that never falls, and what is left out."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from trt_sam import progress as module
from trt_sam.progress import Stages, counted, part


class Bar:
    """Keeps the fractions that a bar was shown."""

    n = 0.0

    def __init__(self) -> None:
        self.shown: list[float] = []

    def set_description_str(self, text: str, refresh: bool) -> None:
        assert len(text) <= 40

    def update(self, step: float) -> None:
        self.n += step
        self.shown.append(self.n)

    def close(self) -> None:
        pass


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "trt_sam.progress"]


def test_the_bar_never_falls_and_jumps_over_stages_that_are_left_out() -> None:
    bar = Bar()
    with Stages({"load": 1, "calibrate": 6, "export": 1, "build": 2}) as stages:
        stages._bar = bar
        stages.begin("load", "loading")(1.0, "")
        stages.begin("export", "exporting")(0.5, "")
        build = stages.begin("build", "building")
        for fraction in (0.0, 0.5, 0.2, 2.0, -1.0):
            build(fraction, "a phase of TensorRT whose name is longer than a bar has room for")
    assert bar.shown == sorted(bar.shown)
    # Calibration is jumped over: the export stands in its own place.
    assert [round(each, 2) for each in bar.shown] == [0, 0.1, 0.7, 0.75, 0.8, 0.8, 0.9, 0.9, 1.0, 1.0]


def test_each_stage_is_one_line_and_each_phase_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trt_sam")
    with Stages({"load": 1, "calibrate": 1, "build": 1}) as stages:
        stages.begin("load", "loading")(0.5, "weights")
        tell = counted(stages.begin("calibrate", "calibrating", phases=True))
        for phase in ("ranges", "counts"):
            for done in range(3):
                tell(phase, done, 3)
        later = stages.later("build", "building")
        assert lines(caplog)[-1] == "calibrating: counts"
        for fraction in (0.0, 0.5):
            later(fraction, "a phase")
    assert lines(caplog) == ["loading", "calibrating: ranges", "calibrating: counts", "building", "done"]


def test_what_fails_is_not_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trt_sam")
    stages = Stages({"load": 1})

    def work() -> None:
        with stages:
            stages.begin("load", "loading")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert lines(caplog) == ["loading"]


def test_long_work_without_a_bar_says_again_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "trt_sam")
    monkeypatch.setattr(module, "_SILENCE", -1.0)
    with Stages({"embed": 1}) as stages:
        stages.begin("embed", "embedding 4 photos")(0.25, "2 of 4, cat.jpg")
    assert lines(caplog) == ["embedding 4 photos", "embedding 4 photos: 2 of 4, cat.jpg, 25%", "done"]


def test_work_that_tells_nothing_is_said_to_go_on(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "trt_sam")
    monkeypatch.setattr(module, "_SILENCE", 0.15)
    monkeypatch.setattr(module, "_TICK", 0.01)
    with Stages({"load": 1, "export": 1}) as stages:
        stages.begin("load", "loading")
        time.sleep(0.25)
        tell = stages.begin("export", "exporting", phases=True)
        part(tell, 1, 2, "encoder.onnx")(0.5, "tracing")
        time.sleep(0.4)
    time.sleep(0.2)
    assert lines(caplog) == [
        *("loading", "loading, 0 s so far", "exporting: encoder.onnx, tracing"),
        *["exporting: encoder.onnx, tracing, 0 s so far"] * 2,
        "done",
    ]


def test_any_thread_may_tell() -> None:
    bar = Bar()
    with Stages({"build": 1}) as stages:
        stages._bar = bar
        tell = stages.begin("build", "building")

        def work() -> None:
            for step in range(200):
                tell(step / 200, f"phase {step}")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.shown == sorted(bar.shown)
