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


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_a_colour_are_refused_and_their_low_bytes_not_dropped(tmp_path: Path, channels: int) -> None:
    """12-bit values in 16-bit words: dropping the low bytes leaves a picture that is nearly black."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, channels), dtype=np.uint16).astype(">u2")
    (tmp_path / "deep.png").write_bytes(png(16, {2: 4, 3: 2, 4: 6}[channels], values))
    mode = {2: "LA;16B", 3: "RGB;16B", 4: "RGBA;16B"}[channels]
    with pytest.raises(InputError, match=rf"deep\.png has mode {mode}, must have 8 bits a channel; scale it first"):
        read_image(tmp_path / "deep.png")
    # the advice works
    scaled = np.rint(values / 4095 * 255).astype(np.uint8)
    read = read_image(save(tmp_path / "scaled.png", scaled[..., 0] if channels == 2 else scaled))
    np.testing.assert_array_equal(read[..., 0], scaled[..., 0])


def test_a_file_that_says_which_value_is_white_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 3), dtype=np.uint16).astype(">u2")
    (tmp_path / "twelve.ppm").write_bytes(b"P6 8 6 4095\n" + values.tobytes())
    assert np.abs(read_image(tmp_path / "twelve.ppm") - values / 4095 * 255).max() <= 0.51


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    # By the plain rule (1 - ink) (1 - black); profiles of inks are not looked at.
    Image.new("CMYK", (8, 8), (0, 255, 128, 51)).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    read = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(read - [204, 0, 102]).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    caplog.set_level("INFO")
    assert (read_image(tmp_path / f"a.{suffix}") == (200, 0, 0)).all()
    assert "holds 3 frames; the first is taken" in caplog.text


@pytest.mark.parametrize(("size", "frame"), [((1, 1), (1024, 1024)), ((50, 20_000), (3, 1024)), ((20_000, 50), (1024, 3))])
def test_odd_sizes_are_read(tmp_path: Path, size: tuple[int, int], frame: tuple[int, int]) -> None:
    rgb = make_rgb(*size)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgb)), rgb)
    assert frame_shape(*size) == frame


def png(bits: int, colour_type: int, values: np.ndarray) -> bytes:
    """A PNG of big-endian values [height, width, channels], as Pillow cannot write it."""
    height, width = values.shape[:2]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, chunk in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return data


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "avif"])
def test_damage_anywhere_is_one_line_or_harmless(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"whole.{suffix}", make_rgb(40, 50)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(data), rng.choice([60, 400, 1 << 30])), 4):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_image(path).dtype == np.uint8
        except InputError as error:
            assert path.name in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


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


def test_subfolders_are_counted_and_not_looked_into(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two.png", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image .*, and its 2 subfolders are not looked into; name one of them"):
        list_images([tmp_path])
    with caplog.at_level("INFO", "trt_sam"):
        assert list_images([tmp_path / "one"]) == [tmp_path / "one" / "a.png"]
        assert caplog.messages == []
        (tmp_path / "b.png").write_bytes(b"x")
        assert list_images([tmp_path]) == [tmp_path / "b.png"]
    assert caplog.messages == [f"{tmp_path}: images of the folder itself are taken, not of its 2 subfolders"]


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
