"""A set with an image encoder on this machine's GPU: photo to mask, photos per second, and clicks while photos are encoded.

Clicks go before encoders (streams have priorities); what a click then waits is the difference of the two rows of clicks.

Example:
  trt-sam build --checkpoint mobile_sam --encoder --output engine
  python benchmarks/gpu_photos.py engine photo.jpg --output benchmarks/results/gpu_photos.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.script import finish  # noqa: E402
from trt_sam._files import write_atomically  # noqa: E402
from trt_sam.bench.stats import Latency, summarize  # noqa: E402
from trt_sam.errors import InputError  # noqa: E402
from trt_sam.imaging.photos import read_image  # noqa: E402
from trt_sam.machine.load import describe_machine  # noqa: E402
from trt_sam.runner import DecoderRunner  # noqa: E402

Photo = npt.NDArray[np.uint8]

POINTS, LABELS = np.array([[500.0, 300.0]], np.float32), np.array([1.0], np.float32)
_AHEAD = 2
"""Photos that are queued before the first is waited for, where throughput is measured."""


@dataclasses.dataclass(frozen=True)
class PhotoTimes:
    """What was measured. Times are milliseconds of the host's clock."""

    photo_to_mask: Latency
    """From pixels on the host, resized there, to the best mask on the host; one photo at a time."""
    photos_per_second: float
    """Photos one after the other, without masks."""
    click: Latency
    """On an image that is there, the GPU idle."""
    click_while_encoding: Latency
    """The same while photos are encoded one after the other."""


def main(argv: list[str] | None = None) -> int:
    """Measure; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="of trt-sam build --encoder")
    parser.add_argument("photo", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for each row (default: %(default)g)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (default: %(default)s)")
    return finish("gpu-photos", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    photos = [read_image(path) for path in args.photo]
    with DecoderRunner.open(args.set, device=args.device, in_flight=2) as runner:
        found = measure(runner, photos, args.seconds)
    report: dict[str, Any] = {"machine": describe_machine(None), "set": str(args.set), **dataclasses.asdict(found)}
    if args.output is not None:
        write_atomically(args.output, json.dumps(report, indent=2) + "\n")
    print("\n".join(lines(found)))
    return 0


def measure(runner: DecoderRunner, photos: list[Photo], seconds: float) -> PhotoTimes:
    """Measure an open runner for `seconds` a row, at least two calls each.

    Raises:
        InputError: the set has no image encoder.
        InferenceError: a call failed.
    """
    if not runner.takes_photos:
        raise InputError("the set has no image encoder; build one with trt-sam build --encoder")
    runner.warm_up([(1, 2)])

    def photo_to_mask(turn: int) -> None:
        image = runner.add_image(photos[turn % len(photos)])
        runner.decode(POINTS, LABELS, image=image)
        runner.drop_image(image)

    whole = _times(photo_to_mask, seconds)
    rate = _photos_per_second(runner, photos, seconds)
    runner.set_image(photos[0])

    def click(turn: int) -> None:
        runner.decode(POINTS, LABELS)

    alone = _times(click, seconds)
    stop, errors = threading.Event(), list[BaseException]()

    def encode() -> None:
        try:
            while not stop.is_set():
                runner.drop_image(runner.submit_image(photos[0]).result())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=encode, name="encoder")
    thread.start()
    try:
        beside = _times(click, seconds)
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
    return PhotoTimes(summarize(whole), rate, summarize(alone), summarize(beside))


def lines(found: PhotoTimes) -> list[str]:
    """The figures for people."""
    rows = (
        ("photo to mask", found.photo_to_mask),
        ("click", found.click),
        ("click while photos are encoded", found.click_while_encoding),
    )
    return [
        *(f"{name}: median {each.p50:.2f} ms, p99 {_or_dash(each.p99)} ms, {each.samples} calls" for name, each in rows),
        f"photos per second: {found.photos_per_second:.1f}",
    ]


def _photos_per_second(runner: DecoderRunner, photos: list[Photo], seconds: float) -> float:
    waiting, count, start = [], 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        waiting.append(runner.submit_image(photos[count % len(photos)]))
        count += 1
        if len(waiting) > _AHEAD:
            runner.drop_image(waiting.pop(0).result())
    for image in waiting:
        runner.drop_image(image.result())
    return count / (time.perf_counter() - start)


def _times(call: Callable[[int], None], seconds: float) -> list[float]:
    call(0)
    times, start = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        call(len(times))
        times.append(1000 * (time.perf_counter() - began))
    return times


def _or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


if __name__ == "__main__":
    sys.exit(main())
