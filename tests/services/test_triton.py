"""A real Triton serves a repository of `trt-sam triton` on the CPU, and tritonclient clicks through `sam`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from tests.services.process import ROOT, run, served_set
from tests.services.triton_process import Triton, start_triton

PHOTO = ROOT / "samples" / "astronaut.jpg"
PROMPTS: list[dict[str, Any]] = [
    {"points": [[220, 400]], "labels": [1]},
    {"points": [[220, 400], [100, 60]], "labels": [1, 0]},
    {"boxes": [[20, 16, 360, 511], [150, 60, 280, 200]]},
    {"points": [[220, 400]], "labels": [1], "boxes": [[20, 16, 360, 511]]},
]
OUTPUTS = ("rle", "iou_predictions", "image_id")
IMAGES = 2


@pytest.fixture(scope="module")
def folder() -> str:
    return served_set()


@pytest.fixture(scope="module")
def triton(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    server = start_triton(folder, tmp_path_factory.mktemp("triton"), images=IMAGES)
    yield server
    assert server.stop() == 0, server.log.read_text()[-5000:]


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request: pytest.FixtureRequest, triton: Triton) -> Iterator[Client]:
    with over_grpc(triton) if request.param == "grpc" else over_http(triton) as each:
        yield each


@pytest.fixture(scope="module")
def runners_masks(folder: str) -> list[list[dict[str, Any]]]:
    script = str(ROOT / "tests/services/reference.py")
    masks: list[list[dict[str, Any]]] = json.loads(run(script, folder, str(PHOTO), given=json.dumps(PROMPTS)).stdout)
    return masks


class Client:
    """tritonclient over one of its protocols. The server waits for connections that are open when it ends."""

    def __init__(self, module: Any, client: Any) -> None:
        self.module, self.client = module, client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self, outputs: Sequence[str] = OUTPUTS, model: str = "sam", **arrays: Any) -> Any:
        inputs = []
        for name, value in arrays.items():
            array = np.array([value], object) if isinstance(value, bytes) else np.asarray(value, np.float32)
            tensor = self.module.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "FP32")
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        wanted = [self.module.InferRequestedOutput(name) for name in outputs]
        return self.client.infer(model, inputs, outputs=wanted)


def over_http(triton: Triton) -> Client:
    return Client(triton_http, triton_http.InferenceServerClient(triton.http, network_timeout=120.0, connection_timeout=120.0))


def over_grpc(triton: Triton) -> Client:
    return Client(triton_grpc, triton_grpc.InferenceServerClient(triton.grpc))


def tensors_of(prompt: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {"boxes": prompt["boxes"]} if "boxes" in prompt else {}
    if "points" in prompt:
        given |= {"point_coords": [prompt["points"]], "point_labels": [prompt["labels"]]}
    return given


@pytest.mark.parametrize("number", range(len(PROMPTS)), ids=["click", "two-clicks", "boxes", "click-and-box"])
def test_masks_are_the_runners(client: Client, runners_masks: Any, number: int) -> None:
    answer = client.ask(image=PHOTO.read_bytes(), **tensors_of(PROMPTS[number]))
    expected = runners_masks[number]
    assert [json.loads(each) for each in answer.as_numpy("rle")] == [each["rle"] for each in expected]
    np.testing.assert_allclose(answer.as_numpy("iou_predictions"), [each["score"] for each in expected], atol=1e-5)


def test_rows_that_are_filled_up_change_nothing(client: Client, runners_masks: Any) -> None:
    coords = [[[220, 400], [7, 7]], [[220, 400], [100, 60]]]
    answer = client.ask(image=PHOTO.read_bytes(), point_coords=coords, point_labels=[[1, -2], [1, 0]])
    found = [json.loads(each) for each in answer.as_numpy("rle")]
    assert found == [runners_masks[0][0]["rle"], runners_masks[1][0]["rle"]]


def test_a_picture_is_named_by_its_id_and_embedded_once(client: Client, triton: Triton) -> None:
    first = client.ask(image=PHOTO.read_bytes(), **tensors_of(PROMPTS[0]))
    (name,) = first.as_numpy("image_id")
    embedded = encoder_calls(triton)
    again = client.ask(image_id=name, **tensors_of(PROMPTS[0]))
    assert again.as_numpy("rle").tolist() == first.as_numpy("rle").tolist()
    assert client.ask(image=PHOTO.read_bytes(), **tensors_of(PROMPTS[0])).as_numpy("image_id").tolist() == [name]
    assert encoder_calls(triton) == embedded


def test_an_earlier_mask_goes_in_again(client: Client) -> None:
    first = client.ask([*OUTPUTS, "low_res_masks"], image=PHOTO.read_bytes(), **tensors_of(PROMPTS[0]))
    logits = first.as_numpy("low_res_masks")
    assert logits.shape == (1, 1, 256, 256)
    refined = client.ask(image=PHOTO.read_bytes(), mask_input=logits, **tensors_of(PROMPTS[0]))
    assert refined.as_numpy("iou_predictions")[0] > 0.8
    assert refined.as_numpy("rle")[0] != first.as_numpy("rle")[0]


def test_the_least_recently_used_picture_goes(triton: Triton) -> None:
    with over_http(triton) as client:
        (name,) = client.ask(image=PHOTO.read_bytes(), **tensors_of(PROMPTS[0])).as_numpy("image_id")
        for other in ((ROOT / "samples/scene.png").read_bytes(), PHOTO.read_bytes() + b"another"):
            client.ask(image=other, **tensors_of({"points": [[100, 100]], "labels": [1]}))
        with pytest.raises(InferenceServerException, match="no such image"):
            client.ask(image_id=name, **tensors_of(PROMPTS[0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": b"no picture", "boxes": [[1, 1, 9, 9]]}, "upload is not an image"),
        ({"image_id": b"none", "boxes": [[1, 1, 9, 9]]}, "no such image"),
        ({"boxes": [[1, 1, 9, 9]]}, "there is no picture"),
        ({"image": PHOTO.read_bytes()}, "there is no prompt"),
        ({"image": PHOTO.read_bytes(), "point_coords": [[[1, 2]]], "point_labels": [[7]]}, "point_labels must be 1 to add"),
        ({"image": PHOTO.read_bytes(), "point_coords": [[[1, 2]]]}, r"point_labels must be \[1, 1\]"),
        ({"image": PHOTO.read_bytes(), "point_coords": [[[513, 2]]], "point_labels": [[1]]}, "outside of the picture"),
        ({"image": PHOTO.read_bytes(), "boxes": [[9, 9, 1, 1]]}, "x0 < x1"),
        ({"image": PHOTO.read_bytes(), "boxes": [[0, 0, 9, 9]] * 65}, "there are 65 prompts, at most 64"),
        (
            {"image": PHOTO.read_bytes(), "point_coords": np.ones((1, 10_000, 2)), "point_labels": np.ones((1, 10_000))},
            "at most 256",
        ),
    ],
    ids=["no-picture", "unknown-id", "nothing", "no-prompt", "label", "no-labels", "outside", "empty-box", "prompts", "points"],
)
def test_bad_input_is_a_line(client: Client, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.ask(**given)
    assert "Traceback" not in str(caught.value)


def test_the_decoder_itself_refuses_what_would_take_all_memory(client: Client) -> None:
    arrays = {
        "image_embeddings": np.zeros((1, 256, 64, 64)),
        "point_coords": np.ones((1, 10_000, 2)),
        "point_labels": np.ones((1, 10_000)),
        "mask_input": np.zeros((1, 1, 256, 256)),
        "has_mask_input": np.zeros(1),
    }
    with pytest.raises(InferenceServerException, match="the request has 10000 points"):
        client.ask(["iou_predictions"], "sam_decoder", **arrays)


@pytest.mark.parametrize("plan", [False, True], ids=["python", "plan"])
def test_configs_are_protobuf_that_triton_knows(folder: str, plan: bool) -> None:
    script = str(ROOT / "tests/services/configs.py")
    texts: dict[str, str] = json.loads(run(script, folder, *(["--plan"] if plan else [])).stdout)
    assert list(texts) == ["sam_encoder", "sam_decoder", "sam"]
    for name, text in texts.items():
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert config.name == name
        assert config.max_batch_size == 0
        engine = plan and name != "sam"
        assert (config.platform, config.backend) == (("tensorrt_plan", "") if engine else ("", "python"))
        assert config.instance_group[0].kind == (
            config.instance_group[0].KIND_GPU if plan else config.instance_group[0].KIND_CPU
        )


def test_the_repository_says_how_to_start_it(triton: Triton) -> None:
    text = (Path(triton.log).parent / "model_repository" / "README.md").read_text()
    assert "tritonserver --model-repository" in text


def encoder_calls(triton: Triton) -> int:
    with over_http(triton) as client:
        (stats,) = client.client.get_inference_statistics("sam_encoder")["model_stats"]
    return int(stats["inference_count"])
