"""TensorRT's calibration cache: text that carries the scale of every tensor from one build to the next.

    TRT-101601-EntropyCalibration2
    image_embeddings: 3caa54fc

The first line has the version as one number (10.16.1 is 101601) and the algorithm; every other line a tensor of TensorRT's
network and its scale, the range divided by 127, as the bits of a float32 in hexadecimal (TensorRT's samples read it so:
sampleEngines.cpp). TensorRT skips a cache of another version without an error, so that is told here.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trt_sam._files import existing_file, write_atomically
from trt_sam.errors import InputError

__all__ = [
    "ALGORITHMS",
    "CalibrationCache",
    "NameMap",
    "map_names",
    "parse_cache",
    "read_cache",
    "version_number",
    "write_cache",
]

ALGORITHMS = {"entropy": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
"""What the header calls the calibrators that `calibrators.implicit` makes."""
MAX_TENSORS = 100_000
"""A SAM decoder has about two thousand tensors; a file with more lines than this is something else."""

_MAX_BYTES = 32 * 2**20
_HEADER = re.compile(r"TRT-([0-9]{4,7})-(\w{1,64})")
_BITS = re.compile(r"[0-9a-fA-F]{8}|0")
_LARGEST = 127.0


@dataclass(frozen=True)
class CalibrationCache:
    """Scales by tensor name, and what made them."""

    version: int
    """Of TensorRT, as `version_number` has it."""
    algorithm: str = "entropy"
    """One of ALGORITHMS."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """float32 values: range / 127. 0 is of a tensor that is 0 everywhere."""

    @classmethod
    def from_ranges(cls, ranges: Mapping[str, float], version: str, algorithm: str = "entropy") -> CalibrationCache:
        """Of the ranges (largest absolute values) of tensors, for a TensorRT whose version is `version` ("10.16.1.11")."""
        return cls(version_number(version), algorithm, {name: amax / _LARGEST for name, amax in ranges.items()})

    def to_text(self) -> str:
        """The file's text.

        Raises:
            InputError: no tensor or too many, a name that is no line, a scale that is no finite float32 from 0, or an unknown
                algorithm.
        """
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"algorithm is {self.algorithm!r}, must be one of {', '.join(ALGORITHMS)}")
        if not 0 < len(self.scales) <= MAX_TENSORS:
            raise InputError(f"a calibration cache holds 1 to {MAX_TENSORS} tensors, not {len(self.scales)}")
        return "".join([f"TRT-{self.version}-{ALGORITHMS[self.algorithm]}\n", *map(_line, self.scales, self.scales.values())])

    def check_version(self, version: str) -> None:
        """Raise InputError unless TensorRT `version` ("10.16.1.11") would read this cache."""
        if version_number(version) != self.version:
            raise InputError(
                f"the calibration cache is of TensorRT {self.version}, but {version} ({version_number(version)}) is installed "
                "and would skip it; calibrate again with this one"
            )


@dataclass(frozen=True)
class NameMap:
    """Which scales found their tensor."""

    scales: dict[str, float]
    """By the name of TensorRT's tensor."""
    unmatched: tuple[str, ...]
    """Names of scales that no tensor of the network has."""
    uncovered: tuple[str, ...]
    """Tensors of the network without a scale: TensorRT keeps them in FP16 or FP32."""

    def __str__(self) -> str:
        text = f"{len(self.scales)} scales found their tensor, {len(self.unmatched)} did not"
        shown = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
        return text + (f" ({shown})" if shown else "") + f"; {len(self.uncovered)} tensors have none"


def read_cache(path: str | os.PathLike[str]) -> CalibrationCache:
    """Read the cache file `path`; raises InputError as `parse_cache` does, with the path, or where it cannot be read."""
    path = existing_file(path, "calibration cache")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"calibration cache {path} has more than {_MAX_BYTES // 2**20} MiB; it is another file")
    try:
        return parse_cache(path.read_bytes())
    except InputError as error:
        raise InputError(f"calibration cache {path}: {error}") from None


def write_cache(path: str | os.PathLike[str], cache: CalibrationCache) -> None:
    """Write `cache` to `path`, whole or not at all.

    Raises:
        InputError: as `CalibrationCache.to_text`, or `path` cannot be written.
    """
    write_atomically(Path(path), cache.to_text())


def parse_cache(data: bytes) -> CalibrationCache:
    """Read a cache out of the bytes that TensorRT hands out or a file holds.

    Raises:
        InputError: it is no cache, of an unknown algorithm, cut, too long, or a line has no scale, a bad one or a name twice.
    """
    if data.count(b"\n", 0, _MAX_BYTES) > MAX_TENSORS + 1 or len(data) > _MAX_BYTES:
        raise InputError(f"it has more than {MAX_TENSORS} lines or {_MAX_BYTES // 2**20} MiB; it is another file")
    try:
        lines = data.decode().rstrip("\0\r\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8 text; it is another file or damaged") from None
    header = _HEADER.fullmatch(lines[0].rstrip("\r"))
    if header is None:
        raise InputError(
            f"it begins with {lines[0][:40]!r}, must with TRT-<version>-<algorithm>; it is another file or damaged"
        )
    algorithms = {title: name for name, title in ALGORITHMS.items()}
    if header[2] not in algorithms:
        raise InputError(f"its algorithm is {header[2]!r}, must be one of {', '.join(algorithms)}; calibrate again")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        name, scale = _parse_line(line.rstrip("\r"), number)
        if name in scales:
            raise InputError(f"line {number} has tensor {name[:80]!r} a second time; calibrate again")
        scales[name] = scale
    if not scales:
        raise InputError("it has a header and no scale; it is cut, so calibrate again")
    return CalibrationCache(int(header[1]), algorithms[header[2]], scales)


def map_names(scales: Mapping[str, float], tensors: Iterable[str]) -> NameMap:
    """Find the tensor of TensorRT's network for every scale that carries the name of an ONNX tensor.

    TensorRT's parser keeps ONNX names; what it makes by itself ("(Unnamed Layer* 7) [Shuffle]_output") and what it folds away
    has none, so some scales may find nothing.

    Args:
        scales: by ONNX tensor name.
        tensors: names of the parsed network's tensors.

    Raises:
        InputError: not one name is known: the scales are of another graph.
    """
    known = dict.fromkeys(tensors)
    found = {name: scale for name, scale in scales.items() if name in known}
    if not found:
        seen = next(iter(scales), "")
        raise InputError(
            f"none of the {len(scales)} scales ({seen[:80]!r}, ...) is of a tensor of this graph, so they are of another; "
            "calibrate again"
        )
    return NameMap(
        found, tuple(name for name in scales if name not in known), tuple(name for name in known if name not in found)
    )


def version_number(version: str) -> int:
    """The number in a cache's header for TensorRT `version`: "10.16.1.11" is 101601, "8.4.1" is 8401.

    Raises:
        InputError: it does not begin with three numbers.
    """
    match = re.match(r"([0-9]{1,3})\.([0-9]{1,2})\.([0-9]{1,2})(?![0-9])", version)
    if match is None:
        raise InputError(f"TensorRT version is {version!r}, must begin like 10.16.1")
    major, minor, patch = map(int, match.groups())
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def _parse_line(line: str, number: int) -> tuple[str, float]:
    name, colon, bits = line.rpartition(":")  # names may hold colons
    bits = bits.strip()
    if not colon or not name:
        raise InputError(
            f"line {number} is {line[:80]!r}, must be a name, a colon and 8 hexadecimal digits; it is cut or damaged"
        )
    # TensorRT pads nothing, but only 0 is shorter: a scale below 8 digits would be under 1e-28, so the line is cut.
    if _BITS.fullmatch(bits) is None:
        raise InputError(f"line {number} has {bits[:20]!r} for a scale, must be 8 hexadecimal digits; it is cut or damaged")
    scale = float(struct.unpack(">f", bytes.fromhex(bits.zfill(8)))[0])
    if not 0 <= scale < float("inf"):
        raise InputError(f"line {number} has the scale {scale}, must be finite and not negative; calibrate again")
    return name, scale


def _line(name: str, scale: float) -> str:
    if not name or any(mark in "\n\r\0" or "\ud800" <= mark <= "\udfff" for mark in name):
        raise InputError(f"tensor name {name[:80]!r} does not fit on a line of a calibration cache; rename it in the graph")
    # NaN compares false.
    if not 0 <= scale <= float(np.finfo(np.float32).max):
        raise InputError(f"tensor {name[:80]!r} has the scale {scale}, must be a finite float32 and not negative")
    bits = struct.pack(">f", scale).hex()
    return f"{name}: {bits if scale else '0'}\n"  # TensorRT pads nothing
