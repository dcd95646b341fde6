"""The README.md that lies in a model repository: how Triton is started on it, and what it is asked."""

from __future__ import annotations

from trt_sam._version import __version__
from trt_sam.engine.manifest import Manifest

__all__ = ["readme"]

_TEXT = """# Segment Anything for Triton

Written by trt-sam {version} from the set `{name}` (checkpoint {checkpoint}).

| model | what it does |
|---|---|
| `sam` | pictures and prompts to masks; keeps the embeddings of the last 64 pictures (`images` in its config.pbtxt) |
| `sam_encoder` | a picture in the frame of 1024 pixels to its embedding; {executed} |
| `sam_decoder` | embedding and prompts to masks; {executed} |

## Start

{start}

## Ask

```python
import json
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("127.0.0.1:8000")
picture = triton.InferInput("image", [1], "BYTES")
picture.set_data_from_numpy(np.array([open("photo.jpg", "rb").read()], object))
points = triton.InferInput("point_coords", [1, 1, 2], "FP32")
points.set_data_from_numpy(np.array([[[220, 400]]], np.float32))
labels = triton.InferInput("point_labels", [1, 1], "FP32")
labels.set_data_from_numpy(np.ones((1, 1), np.float32))
wanted = [triton.InferRequestedOutput(name) for name in ("rle", "iou_predictions", "image_id")]
answer = client.infer("sam", [picture, points, labels], outputs=wanted)
mask = json.loads(answer.as_numpy("rle")[0])    # COCO's compressed RLE at the picture's size
```

| tensor of `sam` | type, shape | |
|---|---|---|
| `image` or `image_id` | BYTES [1] | a JPEG, PNG or WebP; or the id of an earlier answer |
| `point_coords`, `point_labels` | FP32 [prompts, points, 2], [prompts, points] | pixels; 1 adds, 0 removes, -2 fills up |
| `boxes` | FP32 [prompts, 4] | (x0, y0, x1, y1) |
| `mask_input` | FP32 [prompts, 1, 256, 256] | `low_res_masks` of an earlier answer, where the set takes them |
| `rle` | BYTES [prompts] | JSON: the best mask of each prompt |
| `iou_predictions`, `low_res_masks` | FP32 [prompts], [prompts, 1, 256, 256] | of that mask; the second is large |

Name the outputs that you want. The same bytes have the same id and are embedded once. An `image_id` that is not kept any more
is an error (404): send `image` again. Embeddings live in the one process of `sam`: for several GPUs start a Triton for each,
and let a proxy send a picture's requests to one of them by its id.
"""

_PYTHON_START = """Triton's Python backend needs this package, numpy, Pillow and onnxruntime in its Python; no GPU, no torch:

```sh
pip install --no-deps PATH_OF_TRT_SAM && pip install numpy pillow onnxruntime
tritonserver --model-repository=$PWD
```

Without a container: `scripts/triton_server.py` of trt-sam starts the server that nvidia-pytriton 0.7.0 brings along."""

_PLAN_START = """The plans were built by TensorRT {tensorrt}{gpus}: they need a Triton of that version
(all are in https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html), and `sam` this package, numpy and Pillow
in Triton's Python. Never run so far: written without a GPU.

```sh
docker run --rm --gpus 1 --shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 -v $PWD:/models -v PATH_OF_TRT_SAM:/trt_sam \\
    nvcr.io/nvidia/tritonserver:YY.MM-py3 \\
    sh -c 'pip install --no-deps /trt_sam && pip install numpy pillow && tritonserver --model-repository=/models{flag}'
```"""


def readme(manifest: Manifest, *, plan: bool) -> str:
    """The text for a repository of the set's engines (`plan`) or of its graphs."""
    start, executed = _PYTHON_START, "a graph in ONNX Runtime, on the CPU"
    if plan:
        executed = "an engine of TensorRT"
        gpus = f" for compute capability {', '.join(manifest.compute_capabilities)}" if manifest.compute_capabilities else ""
        flag = " --backend-config=tensorrt,version-compatible=true" if manifest.recipe.version_compatible else ""
        start = _PLAN_START.format(tensorrt=manifest.flavour_version, gpus=gpus, flag=flag)
    return _TEXT.format(
        version=__version__,
        name=manifest.folder.resolve().name,
        checkpoint=manifest.graphs[0].checkpoint_sha256[:12] or "unknown",
        executed=executed,
        start=start,
    )
