"""Turn the training state of `train_standin.py` into an ordinary Hugging Face `SamModel` folder, in half precision.

    python scripts/save_standin.py --state s.pt --output trt_sam/data/standin

With several states their weights are averaged (Izmailov et al. 2018, "Averaging weights leads to wider optima and better
generalization"): the ends of successive stages of one training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train_standin import PIXEL_MEAN, PIXEL_STD, vision_settings

from trt_sam._files import atomic_path, write_atomically
from trt_sam.model import naming

DECODER_NORM_EPS = 1e-5
"""Meta's epsilon in the decoder's transformer, with which the stand-in is trained; transformers' default is 1e-6."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--state", type=Path, action="append", required=True, help="a .pt that train_standin.py keeps; repeatable: the mean"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    save_folder(mean_state([torch.load(path, weights_only=True, map_location="cpu") for path in args.state]), args.output)


def mean_state(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every tensor, taken in float64."""
    return {name: torch.stack([s[name].double() for s in states]).mean(0).to(value.dtype) for name, value in states[0].items()}


def save_folder(state: dict[str, Tensor], folder: Path) -> None:
    """Write `state` (keys `encoder.*` in `SamVisionEncoder`'s names, `decoder.*` in Meta's) as a float16 folder."""
    from safetensors.torch import save_file
    from transformers import SamConfig

    tensors = hf_state(state)
    half = {name: value.to(torch.float16).contiguous() for name, value in tensors.items()}
    overflown = [name for name, value in half.items() if not bool(torch.isfinite(value).all())]
    if overflown:
        raise SystemExit(f"not representable in float16: {', '.join(overflown[:5])}")
    config = SamConfig(
        vision_config=vision_settings(),
        prompt_encoder_config={},
        mask_decoder_config={"layer_norm_eps": DECODER_NORM_EPS},
        architectures=["SamModel"],
        dtype="float16",
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(half, temporary, metadata={"format": "pt"})
    write_atomically(folder / "config.json", config.to_json_string())
    write_atomically(folder / "preprocessor_config.json", json.dumps(preprocessor_settings(), indent=2) + "\n")


def hf_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of `SamModel`."""
    decoder = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    renamed, unknown = naming.meta_to_hf(decoder)
    if unknown:
        raise SystemExit(f"names that SamModel does not have: {', '.join(unknown[:5])}")
    encoder = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
    return renamed | {naming.HF_ENCODER_PREFIX + name: value for name, value in encoder.items()}


def preprocessor_settings() -> dict[str, object]:
    """What `SamImageProcessor` reads; its mean and standard deviation are of pixels in 0..1."""
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": 1024},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(x) / 255, 6) for x in PIXEL_MEAN.flatten()],
        "image_std": [round(float(x) / 255, 6) for x in PIXEL_STD.flatten()],
        "do_pad": True,
        "pad_size": {"height": 1024, "width": 1024},
        "mask_size": {"longest_edge": 256},
        "mask_pad_size": {"height": 256, "width": 256},
    }


if __name__ == "__main__":
    main()
