"""Calibration cache text: what is written is read, what is damaged is told, what is fuzzed breaks nothing."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from calibrators.cache import (
    MAX_TENSORS,
    CalibrationCache,
    map_names,
    parse_cache,
    read_cache,
    version_number,
    write_cache,
)
from trt_sam.errors import InputError

REAL = b"TRT-101601-EntropyCalibration2\nimage_embeddings: 3caa54fc\n/layers.0/MatMul_1: 3c010a14\na:b: 0\n"
"""Two lines as TensorRT writes them, and one with a colon in its name and the 0 that TensorRT writes without padding."""


def test_what_tensorrt_writes_is_read() -> None:
    cache = parse_cache(REAL)
    assert (cache.version, cache.algorithm) == (101601, "entropy")
    # Bits taken apart by hand: sign 0, exponent 0x79, fraction 0x2a54fc.
    assert cache.scales["image_embeddings"] == (1 + 0x2A54FC / 2**23) * 2.0 ** (0x79 - 127)
    assert cache.scales["a:b"] == 0
    assert cache.to_text().encode() == REAL


@pytest.mark.parametrize("algorithm", ["entropy", "minmax"])
def test_ranges_come_back_from_a_file(tmp_path: Path, algorithm: str) -> None:
    rng = np.random.default_rng(7)
    ranges = {f"tensor:{i}": float(amax) for i, amax in enumerate(rng.lognormal(0, 4, 500))}
    cache = CalibrationCache.from_ranges(ranges, "10.16.1.11", algorithm)
    write_cache(tmp_path / "folder" / "int8.cache", cache)
    back = read_cache(tmp_path / "folder" / "int8.cache")
    assert (back.version, back.algorithm, list(back.scales)) == (101601, algorithm, list(ranges))
    for name, amax in ranges.items():
        assert back.scales[name] == np.float32(amax / 127)


@pytest.mark.parametrize(
    ("text", "number"), [("10.16.1.11", 101601), ("10.0.0", 100000), ("8.4.1.5", 8401), ("11.4.0", 110400)]
)
def test_versions_are_numbered_as_tensorrt_does(text: str, number: int) -> None:
    assert version_number(text) == number


@pytest.mark.parametrize("text", ["", "10", "10.16", "ten.one.two", "10.16.100"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must begin like"):
        version_number(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with ''"),
        (b"TRT-101601-Entr", "its algorithm is 'Entr'"),
        (b"TRT-10160", "begins with"),
        (b"TRT-101601-LegacyCalibration\na: 3caa54fc\n", "EntropyCalibration2"),
        (b"TRT-101601-EntropyCalibration2\n", "no scale"),
        (REAL + b"last: 3caa5", "line 5 has '3caa5'.*cut"),
        (REAL + b"last", "line 5 is 'last'.*cut"),
        (REAL + b"\n\nlast: 3caa54fc", "line 5 is ''"),
        (REAL + b"last: 3caa54fx\n", "8 hexadecimal digits"),
        (REAL + b"last: +caa54fc\n", "8 hexadecimal digits"),
        (REAL + b"last: 7fc00000\n", "scale nan"),
        (REAL + b"last: 7f800000\n", "scale inf"),
        (REAL + b"last: bcaa54fc\n", "not negative"),
        (REAL + b": 3caa54fc\n", "must be a name"),
        (REAL + b"a:b: 3caa54fc\n", "second time"),
        (REAL + b"\xff: 3caa54fc\n", "not UTF-8"),
        (b"\x80\x04\x95\n", "not UTF-8"),
    ],
)
def test_a_damaged_cache_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_cache(data)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.cache").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.cache"):
        read_cache(tmp_path / "a.cache")


def test_a_million_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.cache"
    path.write_bytes(REAL + b"".join(b"t%d: 3caa54fc\n" % i for i in range(10**6)))
    with pytest.raises(InputError, match=f"more than {MAX_TENSORS} lines"):
        read_cache(path)


def test_the_most_lines_that_are_allowed_are_read_and_written() -> None:
    cache = CalibrationCache(101601, "entropy", {f"t{i}": 0.5 for i in range(MAX_TENSORS)})
    assert parse_cache(cache.to_text().encode()) == cache


def test_a_cache_of_another_version_is_told() -> None:
    cache = parse_cache(REAL)
    cache.check_version("10.16.1.11")
    with pytest.raises(InputError, match=r"TensorRT 101601, but 10\.14\.1\.48 \(101401\) is installed"):
        cache.check_version("10.14.1.48")


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({}, "1 to"),
        ({"a": float("nan")}, "scale nan"),
        ({"a": -1.0}, "not negative"),
        ({"a": 1e39}, "finite float32"),
        ({"a\nb": 1.0}, "does not fit"),
        ({"a\ud800": 1.0}, "does not fit"),
        ({"": 1.0}, "does not fit"),
    ],
)
def test_what_makes_no_cache_is_not_written(tmp_path: Path, scales: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_cache(tmp_path / "a.cache", CalibrationCache(101601, "entropy", scales))
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        write_cache(tmp_path / "file" / "a.cache", parse_cache(REAL))
    with pytest.raises(InputError, match="folder"):
        write_cache(tmp_path, parse_cache(REAL))


def test_names_are_mapped_and_the_rest_counted() -> None:
    found = map_names({"a": 1.0, "b": 2.0, "gone": 3.0}, ["b", "(Unnamed Layer* 7) [Shuffle]_output", "a"])
    assert found.scales == {"a": 1.0, "b": 2.0}
    assert found.unmatched == ("gone",)
    assert found.uncovered == ("(Unnamed Layer* 7) [Shuffle]_output",)
    assert str(found) == "2 scales found their tensor, 1 did not (gone); 1 tensors have none"


def test_scales_of_another_graph_are_refused() -> None:
    with pytest.raises(InputError, match="of another"):
        map_names({"a": 1.0}, ["b"])
    with pytest.raises(InputError, match="none of the 0"):
        map_names({}, ["b"])


def test_fuzzed_caches_give_our_errors_or_a_cache_that_can_be_written() -> None:
    rng = random.Random(20260822)
    lines = REAL.splitlines(keepends=True)
    read = bad_messages = 0
    for _ in range(100_000):
        data = bytearray(REAL)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(5)
            if kind == 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 1:
                del data[at : at + rng.randint(1, 30)]
            elif kind == 2:
                data[at:at] = rng.choice(lines)
            elif kind == 3:
                data[at:at] = rng.choice(
                    (b":", b"\n", b"\r", b"\0", b"-", b"nan", b": ", b"\xed\xa0\x80", b"7fc00000", b"9" * 40)
                )
            else:
                data[at : at + 8] = struct.pack(">f", rng.uniform(-1, 1)).hex().encode()
        try:
            cache = parse_cache(bytes(data))
        except InputError as error:
            bad_messages += "\n" in str(error)
            continue
        read += 1
        if not any("\r" in name or "\0" in name for name in cache.scales):
            assert parse_cache(cache.to_text().encode()) == cache
    assert not bad_messages
    assert 1000 < read < 99_000
