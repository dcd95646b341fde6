"""The calibrator for TensorRT 10's implicit INT8: embeddings and prompts out of PyCUDA buffers, or scales known already.

The class derives from TensorRT's own, which only TensorRT 10 has, so it is made inside a function. Unproven on a GPU here: in
tests it runs over the real bindings of 10.16 and a CUDA driver made of host memory.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.cache import ALGORITHMS, CalibrationCache, map_names, version_number
from trt_sam.contract import LABEL_ABSENT, TensorSpec, check_feed, input_specs
from trt_sam.cuda.device import Device
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.engine.flavour import Flavour
from trt_sam.errors import BuildError, CalibrationError, InputError

__all__ = ["ImplicitCalibration", "fit_feed", "make_calibrator"]

Array = npt.NDArray[Any]
Feeds = Iterable[Mapping[str, Array]]

_BASES = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


class ImplicitCalibration:
    """What `build_engine` takes as `make_calibrator`: feeds, a cache of TensorRT's, or scales by ONNX tensor name.

    It makes one calibrator per build, so it may be used for several builds.
    """

    def __init__(
        self,
        feeds: Feeds | None = None,
        *,
        algorithm: str = "entropy",
        cache: CalibrationCache | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        """Say what to calibrate with; nothing is read or allocated yet.

        Args:
            feeds: run through the network by TensorRT; without effect where TensorRT takes the cache or the scales.
            algorithm: one of ALGORITHMS; a cache brings its own.
            cache: of an earlier build with the same version of TensorRT.
            scales: range / 127 by ONNX tensor name, found without a GPU on the same graph.

        Raises:
            InputError: none of the three or both of the last two, or an unknown algorithm.
        """
        if cache is not None and scales is not None:
            raise InputError("a calibration cache and scales were given; give one of them")
        if feeds is None and cache is None and scales is None:
            raise InputError("there is nothing to calibrate with; give feeds, a calibration cache or scales")
        _check_algorithm(algorithm)
        self._feeds, self._cache, self._scales = feeds, cache, scales
        self._algorithm = cache.algorithm if cache is not None else algorithm

    def __call__(
        self,
        flavour: Flavour,
        shapes: Mapping[str, tuple[int, ...]],
        tensors: Sequence[str],
        stop: threading.Event,
        *,
        device: int = 0,
    ) -> Any:
        """The calibrator of one build; see `trt_sam.engine.job.MakeCalibrator`.

        Raises:
            InputError: the cache is of another version, or cache or scales of another graph.
            InferenceError: no usable GPU, or out of memory.
        """
        data, notes = None, []
        scales = self._scales
        if self._cache is not None:
            self._cache.check_version(flavour.version)
            scales = self._cache.scales
        if scales is not None:
            found = map_names(scales, tensors)
            notes = [f"calibration: {found}"] if found.unmatched or found.uncovered else []
            data = CalibrationCache(version_number(flavour.version), self._algorithm, found.scales).to_text().encode()
        calibrator = make_calibrator(
            flavour.trt, self._feeds, shapes=shapes, algorithm=self._algorithm, cache=data, stop=stop, device=device
        )
        calibrator.warnings += notes
        return calibrator


def make_calibrator(
    trt: ModuleType,
    feeds: Feeds | None,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    algorithm: str = "entropy",
    cache: bytes | None = None,
    stop: threading.Event | None = None,
    device: int = 0,
) -> Any:
    """A calibrator of TensorRT 10 over `feeds`; the caller keeps it for the build and closes it then.

    It has `failure` (what went wrong in a callback, where TensorRT would print and ignore it: look after the build), `written`
    (bytes of the cache that TensorRT wrote, or None), `warnings` and `close()`, which frees the buffers.

    Args:
        trt: TensorRT's bindings.
        feeds: any number of feeds, each float32 and of one image; None where `cache` has all.
        shapes: of the batches that TensorRT gets, by input name; see `fit_feed`.
        algorithm: one of ALGORITHMS.
        cache: text of a cache for this version of TensorRT.
        stop: ends the data once it is set; set on a failure, so that the build need not go on.
        device: number of the GPU.

    Raises:
        BuildError: these bindings have no calibrators.
        InputError: an unknown algorithm, or neither feeds nor cache.
        InferenceError: no usable GPU, or out of memory.
    """
    _check_algorithm(algorithm)
    if feeds is None and cache is None:
        raise InputError("there is nothing to calibrate with; give feeds or a calibration cache")
    base: Any = getattr(trt, _BASES[algorithm], None)
    if base is None:
        raise BuildError(f'TensorRT {trt.__version__} has no calibrators; use quantization.method = "explicit"')
    ending = stop or threading.Event()

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # the bindings crash without it
            self.failure: BaseException | None = None
            self.written: bytes | None = None
            self.warnings: list[str] = []
            self._cache = cache  # TensorRT reads it where it is
            self._batches = None if feeds is None else _Batches(feeds, shapes, device)
            self._asked = False

        def get_batch_size(self) -> int:
            return 1  # the number of prompts is in the shapes

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            """Addresses of the next batch in the order of `names`, or None at the end."""
            try:
                return None if ending.is_set() else self._next(names)
            except BaseException as error:
                self._fail(error)
                return None

        def read_calibration_cache(self) -> bytes | None:
            return self._cache

        def write_calibration_cache(self, data: Any) -> None:
            try:
                if not ending.is_set():  # else it is of half the data
                    self.written = bytes(data)  # a view of memory that TensorRT frees
            except BaseException as error:
                self._fail(error)

        def close(self) -> None:
            if self._batches is not None:
                self._batches.close()

        def _next(self, names: Sequence[str]) -> list[int] | None:
            if self._cache is not None and not self._asked:
                refused = "TensorRT did not take the calibration cache"
                if self._batches is None:
                    raise CalibrationError(f"{refused}, and there are no feeds to calibrate anew; give embeddings or photos")
                self.warnings.append(f"{refused} and calibrated anew")
            assert self._batches is not None
            addresses = self._batches.next(names)
            if addresses is None and not self._asked:
                raise CalibrationError("the calibration feeds hold no prompt; give at least one")
            self._asked = True
            return addresses

        def _fail(self, error: BaseException) -> None:
            traceback.clear_frames(error.__traceback__)  # they keep buffers
            self.failure = self.failure or error
            ending.set()

    return Calibrator()


def fit_feed(feed: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Array]]:
    """Cut and pad one feed into batches that have exactly `shapes`.

    Points are padded with label -2, which changes no mask. Prompts are cut into groups; where the last group is short, its own
    prompts are repeated, so that nothing is made up. What all batches share (the embedding) is the same array in all of them.

    Raises:
        ContractError: the feed does not fit the decoder's tensors, or has more points than fit.
    """
    specs = _specs(shapes)
    prompts, points = shapes["point_labels"]
    checked = check_feed(feed, specs, {"num_points": (1, points)})
    missing = points - checked["point_labels"].shape[1]
    if missing:
        checked["point_labels"] = np.pad(checked["point_labels"], ((0, 0), (0, missing)), constant_values=LABEL_ABSENT)
        checked["point_coords"] = np.pad(checked["point_coords"], ((0, 0), (0, missing), (0, 0)))
    # Views: an array that the feeds fill anew must not be taken for the one that was uploaded.
    checked = {name: array.view() for name, array in checked.items()}
    count = len(checked["point_labels"])
    for start in range(0, count, prompts):
        rows = np.resize(np.arange(start, min(start + prompts, count)), prompts)
        yield {s.name: checked[s.name][rows] if s.dims[0] == "num_prompts" else checked[s.name] for s in specs}


class _Batches:
    """Batches of `feeds`, one after the other in the same device memory: an address per input."""

    def __init__(self, feeds: Feeds, shapes: Mapping[str, tuple[int, ...]], device: int) -> None:
        _specs(shapes)
        self._batches = (batch for feed in feeds for batch in fit_feed(feed, shapes))
        self._uploaded: dict[str, Array] = {}
        self._device = Device(device)
        try:
            self._stream = Stream(self._device)
            sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
            self._buffers = {name: self._device.buffer(size) for name, size in sizes.items()}
            self._host = {name: page_locked(self._device, size) for name, size in sizes.items()}
        except BaseException:
            self._device.close()
            raise

    def next(self, names: Sequence[str]) -> list[int] | None:
        """Addresses in the order of `names`, or None at the end.

        TensorRT has used the batch before by then: it waits for the GPU before it asks for the next.
        """
        unknown = [name for name in names if name not in self._buffers]
        if unknown:
            raise CalibrationError(f"TensorRT asks for input {unknown[0]!r}; the feeds have {', '.join(self._buffers)}")
        batch = next(self._batches, None)
        if batch is None:
            return None
        with self._device.active():
            for name, array in batch.items():
                if self._uploaded.get(name) is not array:  # prompts of one image share its embedding, 4 MiB
                    self._host[name][:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                    self._stream.upload(self._buffers[name].address, self._host[name])
            self._stream.synchronize()
        self._uploaded = batch
        return [self._buffers[name].address for name in names]

    def close(self) -> None:
        """Free all of it. May be called again."""
        self._device.close()
        self._batches.close()
        self._host.clear()
        self._uploaded = {}


def _specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """The decoder's inputs that `shapes` names; raises CalibrationError where it names another."""
    specs = tuple(spec for spec in input_specs(mask_input=True) if spec.name in shapes)
    unknown = set(shapes) - {spec.name for spec in specs}
    if unknown or not {"point_coords", "point_labels"} <= set(shapes):
        raise CalibrationError(f"the graph's inputs are {', '.join(shapes)}, which no calibration feed has; export it again")
    return specs


def _check_algorithm(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm is {algorithm!r}, must be one of {', '.join(ALGORITHMS)}; TensorRT 10 has no other")
