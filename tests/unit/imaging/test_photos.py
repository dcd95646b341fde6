from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from trt_sam.errors import InputError
from trt_sam.imaging.photos import frame_shape, list_images, read_image

Image = pytest.importorskip("PIL.Image")


def make_rgb(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, rgb: np.ndarray, **options: object) -> Path:
    Image.fromarray(rgb).save(path, **options)
    return path


def test_png_is_read_as_it_is(tmp_path: Path) -> None:
    rgb = make_rgb()
    read = read_image(save(tmp_path / "a.png", rgb))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, rgb)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = make_rgb()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    read = read_image(save(tmp_path / "a.png", rgb, exif=exif))
    np.testing.assert_array_equal(read, np.rot90(rgb, -1))


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", (9, 9, 9)), ("RGBA", (10, 20, 30)), ("1", (255, 255, 255)), ("P", (1, 2, 3))]
)
def test_other_8_bit_modes_become_rgb(tmp_path: Path, mode: str, expected: tuple[int, ...]) -> None:
    colour = {"L": 9, "RGBA": (10, 20, 30, 0), "1": 1, "P": 0}[mode]
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([1, 2, 3])
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == expected).all()


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    save(tmp_path / "deep.png", np.full((4, 4), 1000, dtype=np.uint16))
    with pytest.raises(InputError, match=r"deep\.png has mode I;16.*must have 8 bits"):
        read_image(tmp_path / "deep.png")


def test_bad_files_are_one_line_each(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", make_rgb(60, 60)).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", make_rgb(60, 60)).read_bytes()
    bomb = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")):
        bomb += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for name, data, message in (
        ("empty.png", b"", "is empty"),
        ("text.png", b"not an image at all", "not an image"),
        ("cut.png", whole[: len(whole) // 2], "damaged or truncated"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "damaged or truncated"),
        ("bomb.png", bomb, "larger than"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_image(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not found"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="not a file"):
        read_image(tmp_path)


def test_folder_gives_its_images_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "odd").write_bytes(b"x")
    assert list_images([tmp_path]) == [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert list_images([tmp_path / "odd", tmp_path])[0] == tmp_path / "odd"


def test_folder_without_images_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        list_images([tmp_path])
    with pytest.raises(InputError, match="not found"):
        list_images([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no photo"):
        list_images([])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (768, 1024)),
        ((640, 480), (1024, 768)),
        ((1024, 1024), (1024, 1024)),
        ((3, 2048), (2, 1024)),
        ((333, 500), (682, 1024)),
    ],
)
def test_frame_shape_rounds_half_up(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert frame_shape(*size) == expected


def test_vanishing_side() -> None:
    with pytest.raises(InputError, match="5000x1"):
        frame_shape(1, 5000)
