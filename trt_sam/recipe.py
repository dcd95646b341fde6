"""What to build: frozen dataclasses, which check every value. `recipe_toml` reads them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from trt_sam.errors import RecipeError

__all__ = [
    "CALIBRATORS",
    "ENCODER_QUANTIZATION",
    "EXPORT_PRECISIONS",
    "PRECISIONS",
    "QUANTIZED_PRECISIONS",
    "TARGETS",
    "TIERS",
    "EngineRecipe",
    "GraphOptions",
    "QuantizationOptions",
    "ShapeProfile",
    "TuningOptions",
]

EXPORT_PRECISIONS = ("fp32", "fp16")
"""What export alone can write; "int8" and "fp8" need calibration."""
QUANTIZED_PRECISIONS = ("int8", "fp8")
PRECISIONS = (*EXPORT_PRECISIONS, *QUANTIZED_PRECISIONS)
CALIBRATORS = ("entropy", "percentile", "mse", "max", "auto")
TIERS = ("A", "B", "C")
TARGETS = ("cpu", "gpu")
MOST_IMAGES = 64
"""Of one call: their embeddings take 4 MiB each."""
BACKENDS = ("rtx", "tensorrt")
TILING = ("none", "fast", "moderate", "full")

Range = tuple[int, int, int]


@dataclass(frozen=True)
class GraphOptions:
    """What the exported graph computes."""

    precision: str = "fp16"
    """"fp32" or "fp16": the type of weights and activations, but for the float32 islands; "int8" and "fp8": fp16 with quantized
    products."""
    target: str = "gpu"
    """"cpu" or "gpu": which exact form of the decoder is exported."""
    mask_input: bool = False
    """Take `mask_input` and `has_mask_input`, for refining an earlier mask."""
    full_resolution: bool = False
    """Also give `masks` at `orig_im_size`."""
    best_mask: bool = False
    """Give only the mask that SAM's own rule selects, chosen inside the graph."""
    mask_bits: bool = False
    """Also give `mask_bits`: the masks > 0, eight pixels to a byte."""
    images: int = 1
    """How many images a call takes; above 1 `image_index` says to which of them a prompt belongs. For ONNX Runtime."""

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("target", self.target, TARGETS)
        if self.precision in QUANTIZED_PRECISIONS and self.target != "gpu":
            raise RecipeError(f'precision {self.precision} needs target = "gpu"; target is {self.target!r}')
        for name in ("mask_input", "full_resolution", "best_mask", "mask_bits"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(f"{name} is {getattr(self, name)!r}, must be true or false")
        if isinstance(self.images, bool) or not isinstance(self.images, int) or not 1 <= self.images <= MOST_IMAGES:
            raise RecipeError(f"images is {self.images!r}, must be a whole number from 1 to {MOST_IMAGES}")
        if self.images > 1 and self.precision in QUANTIZED_PRECISIONS:
            raise RecipeError(
                f"images is {self.images}, which goes with fp32 and fp16; {self.precision} takes one image a call"
            )


@dataclass(frozen=True)
class QuantizationOptions:
    """How the products of an int8 or fp8 graph get their scales; without effect on other precisions."""

    method: str = "explicit"
    """"explicit": QuantizeLinear/DequantizeLinear pairs in the graph. "implicit": TensorRT 10's own calibrator, int8 only."""
    calibrator: str = "auto"
    """One of CALIBRATORS; "auto" picks per group of products by mask IoU on images that it holds back."""
    tiers: tuple[str, ...] = ("A",)
    """"A": image-side products; "B": the two upscaling products; "C": token products."""
    shift: bool = True
    """Take the middle of each channel's range (FP8: its mean) off before quantizing, folded into the product's bias: exact."""
    smooth_alpha: float | None = 1.0
    """Per-channel scale before quantizing (SmoothQuant's alpha), folded into the weight: exact; None for no scale.

    TOML has no null: there, 0 < alpha <= 1 or false for none.
    """
    second_order: bool = True
    """Round weights so that the products' outputs on the calibration data change least (GPTQ); false: to the nearest."""
    floor: bool = True
    """Let entropy clip a tensor only where the masks of images held back do not move; false: wherever its search says."""
    keep_fp16: tuple[str, ...] = ()
    """Groups of products that stay float16, as `trt-sam sensitivity` names them."""
    prompts_per_image: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("method", self.method, ("explicit", "implicit"))
        _check_choice("calibrator", self.calibrator, CALIBRATORS)
        for name in ("tiers", "keep_fp16"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise RecipeError(f"{name} is {value!r}, must be a list of strings")
            object.__setattr__(self, name, tuple(value))
        if not self.tiers or len(set(self.tiers)) != len(self.tiers) or set(self.tiers) - set(TIERS):
            seen = ",".join(self.tiers) or "empty"
            raise RecipeError(f"tiers is {seen}, must name each of {', '.join(TIERS)} at most once, and one at least")
        for name in ("shift", "second_order", "floor"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(f"{name} is {getattr(self, name)!r}, must be true or false")
        if self.smooth_alpha is False:
            object.__setattr__(self, "smooth_alpha", None)
        alpha = self.smooth_alpha
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1):
            raise RecipeError(f"smooth_alpha is {alpha!r}, must be above 0 and at most 1, or false")
        for name, least in (("prompts_per_image", 1), ("seed", 0)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise RecipeError(f"{name} is {number!r}, must be a whole number from {least}")


@dataclass(frozen=True)
class ShapeProfile:
    """One optimization profile: (min, opt, max) of each dynamic dimension; TensorRT tunes for opt."""

    num_prompts: Range = (1, 1, 16)
    num_points: Range = (1, 2, 32)
    """Points of a prompt, where a box counts as two and clicks without a box as one more."""
    height: Range = (1, 1080, 4096)
    """Only for full-resolution graphs: rows of the original image."""
    width: Range = (1, 1920, 4096)
    """Only for full-resolution graphs: columns of the original image."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            is_range = isinstance(value, list | tuple) and len(value) == 3
            if not is_range or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
                raise RecipeError(f"profile {each.name} is {value!r}, must be three whole numbers [min, opt, max]")
            low, best, high = value
            if not 1 <= low <= best <= high:
                raise RecipeError(f"profile {each.name} is {list(value)}, must be 1 <= min <= opt <= max")
            object.__setattr__(self, each.name, (low, best, high))

    def with_points(self, most: int) -> ShapeProfile:
        """The profile for prompts of up to `most` points, tuned for what it was tuned for."""
        low, best, _ = self.num_points
        return dataclasses.replace(self, num_points=(min(low, most), min(best, most), most))


@dataclass(frozen=True)
class TuningOptions:
    """How TensorRT searches for kernels; None leaves each to TensorRT."""

    optimization_level: int | None = None
    """0 to 5: how long it searches; 3 is its default."""
    tiling: str | None = None
    """"none", "fast", "moderate" or "full": how hard it tries to keep chains of layers in the L2 cache."""
    workspace_mib: int | None = None
    """Most scratch memory of a kernel, MiB; its default is all of the GPU's."""
    tf32: bool = True
    """False: float32 products are never rounded to TF32 (10 bits of mantissa)."""
    timing_iterations: int | None = None
    """How often each kernel is timed, of which the mean is taken."""

    def __post_init__(self) -> None:
        for name, low, high in (("optimization_level", 0, 5), ("workspace_mib", 1, 2**20), ("timing_iterations", 1, 1000)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
                raise RecipeError(f"{name} is {value!r}, must be a whole number from {low} to {high}")
        if self.tiling is not None:
            _check_choice("tiling", self.tiling, TILING)
        if not isinstance(self.tf32, bool):
            raise RecipeError(f"tf32 is {self.tf32!r}, must be true or false")


@dataclass(frozen=True)
class EngineRecipe:
    """Everything that decides what is built."""

    name: str = "custom"
    description: str = ""
    checkpoint: str | None = None
    """"standin", a path or a Hugging Face id; None where the command line must say it. In a manifest, what was given."""
    graph: GraphOptions = field(default_factory=GraphOptions)
    decode_mask: bool = False
    """Also build the graph that refines an earlier mask, from the same recipe with `mask_input`."""
    profiles: tuple[ShapeProfile, ...] = field(default_factory=lambda: (ShapeProfile(),))
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    tuning: TuningOptions = field(default_factory=TuningOptions)
    backend: str | None = None
    """"rtx" or "tensorrt"; None takes TensorRT where it is installed with a GPU, else TensorRT-RTX."""
    compute_capabilities: tuple[str, ...] = ()
    """For TensorRT-RTX: "8.6", "8.9", "12.0"; empty for the flavour's default."""
    max_aux_streams: int | None = 0
    """0 keeps all kernels on one stream (lowest latency for one prompt); None leaves it to TensorRT."""
    version_compatible: bool = False
    hardware_compatible: bool = False
    any_model: bool = False
    """For TensorRT 10 and 11: built for every GPU model of one compute capability, instead of tuned for the one that builds."""

    def __post_init__(self) -> None:
        if not isinstance(self.decode_mask, bool):
            raise RecipeError(f"decode_mask is {self.decode_mask!r}, must be true or false")
        if self.any_model and self.hardware_compatible:
            raise RecipeError("any_model and hardware_compatible are both set; hardware_compatible covers all models already")
        if self.backend is not None:
            _check_choice("backend", self.backend, BACKENDS)
        if not self.profiles:
            raise RecipeError("profiles is empty; give at least one [[profiles]]")
        for value in self.compute_capabilities:
            major, _, minor = str(value).partition(".")
            if not (major.isdigit() and minor.isdigit()):
                raise RecipeError(f'compute capability {value!r} is not a version; write it as "8.9"')
        streams = self.max_aux_streams
        if streams is not None and (isinstance(streams, bool) or not isinstance(streams, int) or streams < 0):
            raise RecipeError(f"max_aux_streams is {streams!r}, must be a whole number from 0")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-able data, as manifests keep it."""
        return dataclasses.asdict(self)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{name} is {value!r}, must be one of {', '.join(allowed)}")


ENCODER_QUANTIZATION = QuantizationOptions(calibrator="max", smooth_alpha=0.85, floor=False)
"""An image encoder's, where no recipe says otherwise. Tried on MobileSAM's with 0.5, 0.7, 0.85 and 1: its embedding is then
1.4, 1.2, 1.1 and 1.4 % from float32's, and never as near without `second_order`."""
