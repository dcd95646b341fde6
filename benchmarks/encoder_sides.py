"""The sides of `benchmarks/encoder.py`, each opened in a worker process (`trt_sam.bench.worker`), and their graphs.

A call takes a photo from host memory and gives an embedding, or masks, in host memory; the worker's prompts are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.bench.worker import peak_mb

Array = npt.NDArray[Any]

PHOTO = "astronaut.png"
CLICK = (220, 400)


class Side:
    """A function of no arguments as a `trt_sam.bench.sides.BenchSide`; it gives an array whose first axis is a batch."""

    def __init__(self, call: Callable[[], Array], about: Mapping[str, str]) -> None:
        self._call = call
        self.about = dict(about)

    def load(self, feed: Mapping[str, Array]) -> None:
        """The photo is there since the side was opened."""

    def call(self) -> tuple[Array, Array]:
        return self._call(), np.zeros(1, np.float32)

    def device_ms(self, count: int) -> list[float] | None:
        return None

    def close(self) -> None: ...


def open_ours(path: str, threads: int) -> Side:
    """Our graph as a user runs it: photo to embedding."""
    import onnxruntime

    from tests.fixtures.real import photo
    from trt_sam.runtime.onnx_encoder import OnnxEncoder

    picture, imported = photo(PHOTO), peak_mb()
    encoder = OnnxEncoder(path, threads=threads)
    return Side(lambda: encoder.embed(picture), _about(f"ONNX Runtime {onnxruntime.__version__}", imported))


def open_plain(path: str, threads: int, *, prepared: bool) -> Side:
    """The plain export of an encoder in a session like ours, behind numpy's normalising; `prepared`: without that."""
    import onnxruntime

    from tests.fixtures.real import photo
    from trt_sam.model.image_encoder import preprocess
    from trt_sam.runtime.session import disabled_optimizers, session_options

    providers = ["CPUExecutionProvider"]
    picture = photo(PHOTO)
    pixels, imported = preprocess(picture), peak_mb()
    session = onnxruntime.InferenceSession(
        path, session_options(threads), providers=providers, disabled_optimizers=disabled_optimizers(providers)
    )

    def call() -> Array:
        embedding: Array = session.run(None, {"pixels": pixels if prepared else preprocess(picture)})[0]
        return embedding

    return Side(call, _about(f"ONNX Runtime {onnxruntime.__version__}", imported))


def open_mobile_sam(threads: int) -> Side:
    """MobileSAM's own `SamPredictor.set_image`."""
    import torch

    from tests.fixtures.real import mobile_sam_oracle, photo

    torch.set_num_threads(threads)
    picture, imported = photo(PHOTO), peak_mb()
    predictor = mobile_sam_oracle()

    def call() -> Array:
        predictor.set_image(picture)
        embedding: Array = predictor.get_image_embedding().numpy()
        return embedding

    return Side(call, _about(f"PyTorch {torch.__version__}", imported))


def open_transformers(threads: int) -> Side:
    """The encoder of transformers, eager, behind numpy's normalising."""
    import torch
    import transformers

    from tests.fixtures.real import photo
    from trt_sam.model.image_encoder import preprocess

    torch.set_num_threads(threads)
    picture, imported = photo(PHOTO), peak_mb()
    encoder = peer_encoder("vit_b")

    def call() -> Array:
        with torch.inference_mode():
            embedding: Array = encoder(torch.from_numpy(preprocess(picture))).numpy()
        return embedding

    return Side(call, _about(f"transformers {transformers.__version__}, PyTorch {torch.__version__}", imported))


def open_our_photo_to_mask(path: str, threads: int) -> Side:
    """A set of graphs by `OnnxRunner` and `Predictor`: from the photo's bytes to the logits of one click's masks."""
    import onnxruntime

    from tests.fixtures.real import photo
    from trt_sam import OnnxRunner, Predictor

    picture, imported = photo(PHOTO), peak_mb()
    predictor = Predictor(OnnxRunner(path, threads=threads))
    return Side(lambda: _masks_of(predictor, picture), _about(f"ONNX Runtime {onnxruntime.__version__}", imported))


def open_their_photo_to_mask(threads: int) -> Side:
    """The same by MobileSAM's own `SamPredictor`."""
    import torch

    from tests.fixtures.real import mobile_sam_oracle, photo

    torch.set_num_threads(threads)
    picture, imported = photo(PHOTO), peak_mb()
    predictor = mobile_sam_oracle()

    def call() -> Array:
        with torch.inference_mode():
            return _masks_of(predictor, picture)

    return Side(call, _about(f"PyTorch {torch.__version__}", imported))


def peer_encoder(kind: str) -> Any:
    """MobileSAM's own encoder with its weights, or transformers' ViT-B with seeded ones."""
    if kind == "mobile_sam":
        from tests.fixtures.real import mobile_sam_oracle

        return mobile_sam_oracle().model.image_encoder.eval().requires_grad_(False)
    import torch
    import transformers
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    class Embedding(torch.nn.Module):
        def __init__(self, encoder: torch.nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            embedding: torch.Tensor = self.encoder(pixels).last_hidden_state
            return embedding

    model = SamVisionEncoder(transformers.SamVisionConfig()).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "pos" not in name else 0.1
        parameter.copy_(spread * torch.randn(parameter.shape) + float("norm" in name and name.endswith("weight")))
    return Embedding(model)


def write_ours(kind: str, path: Path) -> None:
    """Our graph of the same encoder, float32, compared with PyTorch by the exporter."""
    from trt_sam.graph.encoder import export_encoder, sample_pictures
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.model.image_encoder import build_image_encoder
    from trt_sam.model.naming import HF_ENCODER_PREFIX, hf_to_meta

    if kind == "mobile_sam":
        encoder = load_checkpoint("mobile_sam").image_encoder()
    else:
        state = {f"{HF_ENCODER_PREFIX}{name}": value for name, value in peer_encoder(kind).encoder.state_dict().items()}
        encoder = build_image_encoder(hf_to_meta(state)[0], kind, None, "random weights")
    # One sample is enough: the sides are compared too, and ViT-B takes ten seconds of a core for each.
    export_encoder(encoder, path, target="cpu", samples=sample_pictures()[:1])


def write_plain(kind: str, path: Path) -> None:
    """`torch.onnx.export` of the peer's encoder, as it comes."""
    import torch

    from trt_sam.graph.tracing import OPSET, quiet_export

    with quiet_export():
        torch.onnx.export(
            peer_encoder(kind),
            (torch.zeros(1, 3, 1024, 1024),),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            external_data=False,
            verbose=False,
        )


def _masks_of(predictor: Any, picture: Array) -> Array:
    predictor.set_image(picture)
    logits: Array = predictor.predict(np.array([CLICK]), np.array([1]), return_logits=True)[0]
    return logits[None]


def _about(runtime: str, imported_mb: float) -> dict[str, str]:
    return {"runtime": runtime, "imported_mb": f"{imported_mb:.0f}"}
