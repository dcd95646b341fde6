"""Writes golden_everything.json: what MobileSAM's own mask generator finds on two photographs. Minutes of processor time.

python -m tests.data.golden_everything
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fixtures.real import mobile_sam_generator, photo

RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("astronaut.png", {"points_per_side": 16}),
    ("rocket.jpg", {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}),
)
SOURCE = (
    "MobileSAM's own SamAutomaticMaskGenerator (mobilesam-mirror 1.0.0) on its official weights, PyTorch 2.13.0 on a CPU; "
    "photographs of scikit-image 0.26. Written anew by tests/data/golden_everything.py."
)


def main() -> None:
    runs = []
    for name, settings in RUNS:
        generator = mobile_sam_generator(output_mode="coco_rle", points_per_batch=16, **settings)
        runs.append({"photo": name, "settings": settings, "records": generator.generate(photo(name))})
    text = json.dumps({"source": SOURCE, "runs": runs}, separators=(",", ":")) + "\n"
    (Path(__file__).parent / "golden_everything.json").write_text(text)


if __name__ == "__main__":
    main()
