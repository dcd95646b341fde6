"""DecoderRunner.open: an engine set by its manifest, over the host-memory driver and a TensorRT that is ONNX Runtime."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engine_sets import RTX, tiny_build, tiny_set, tiny_sources, write_tiny_encoder
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import FakeRtx, OrtEngine
from tests.fixtures.toy_decoder import specs, toy_decoder, toy_embedding, toy_feed
from tests.fixtures.toy_encoder import toy_encoder, toy_photo
from trt_sam.contract import encoder_input_specs, encoder_output_specs
from trt_sam.engine.callbacks import make_logger
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.flavour import Flavour
from trt_sam.errors import ContractError, GraphError, InferenceError, InputError, ManifestError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.open import _logger
from trt_sam.runtime.predictor import Predictor

pytestmark = pytest.mark.hostcuda

OPTIONS = GraphOptions(precision="fp16", full_resolution=True)
SIZES = {"height": (1, 20, 32), "width": (1, 20, 32)}
RECIPE = EngineRecipe(
    graph=OPTIONS,
    profiles=(
        ShapeProfile(num_prompts=(1, 1, 1), num_points=(1, 2, 4), **SIZES),
        ShapeProfile(num_prompts=(1, 2, 3), num_points=(1, 2, 2), **SIZES),
    ),
)


def flavour(cuda: HostCuda, *, deserializes: bool = True, code_in_plan: bool = False, backend: str = "rtx") -> Flavour:
    """TensorRT as far as `open` uses it; its one engine is the toy decoder."""

    class Runtime:
        engine_host_code_allowed = False
        error_recorder: Any = None

        def __init__(self, logger: object) -> None:
            self.logger = logger
            self.opened = 0

        def deserialize_cuda_engine(self, plan: bytes) -> OrtEngine | None:
            assert plan == b"engine"
            assert cuda.count("context_depth") == 1
            self.opened += 1
            if self.opened == 2:  # the image encoder: fixed shapes, and so one profile
                return OrtEngine(cuda, toy_encoder(), encoder_input_specs(), encoder_output_specs(), [{}])
            if code_in_plan and not self.engine_host_code_allowed:
                return None  # as TensorRT does with the lean runtime of a version-compatible plan
            profiles = [
                {n: (getattr(p, n)[0], getattr(p, n)[2]) for n in ("num_prompts", "num_points", *SIZES)} for p in PROFILES
            ]
            if not deserializes:
                self.error_recorder.report_error(1, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (it is torn)")
                return None
            return OrtEngine(cuda, toy_decoder(OPTIONS), *specs(OPTIONS), profiles)

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            assert level == self.WARNING

    names = {name: thing for kind in (FakeRtx.__mro__[1], FakeRtx) for name, thing in vars(kind).items() if name[0] != "_"}
    module: Any = SimpleNamespace(Runtime=Runtime, Logger=Logger, **names)
    return Flavour(backend, "1.7.1.116", module)


PROFILES = RECIPE.profiles


@pytest.fixture
def engine_set(tmp_path: Path) -> Path:
    tiny_set(tmp_path, recipe=RECIPE, options=OPTIONS)
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, made: Flavour) -> None:
    monkeypatch.setattr("trt_sam.engine.flavour.load_flavour", lambda backend: made)


@pytest.mark.parametrize("name", ["", "manifest.json"])
def test_a_set_is_opened_by_folder_or_manifest(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, engine_set: Path, name: str
) -> None:
    use(monkeypatch, flavour(host_cuda))
    with DecoderRunner.open(engine_set / name) as runner:
        assert runner.limits == {"num_prompts": (1, 3), "num_points": (1, 4), "height": (1, 32), "width": (1, 32)}
        feed = toy_feed(1, 3, 2, OPTIONS)
        assert runner.run(feed)["masks"].shape == (3, 4, 21, 30)
        # The profiles are not a box: each side fits one of them, both together fit none.
        with pytest.raises(ContractError, match="no profile of this engine takes num_prompts = 3, num_points = 4"):
            runner.run(toy_feed(1, 3, 4, OPTIONS))
        assert np.isfinite(runner.run(feed)["low_res_masks"]).all()


def test_a_version_compatible_set_is_opened(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for compatible, folder in ((True, tmp_path / "with"), (False, tmp_path / "without")):
        recipe = dataclasses.replace(RECIPE, version_compatible=compatible)
        tiny_set(folder, recipe=recipe, options=OPTIONS)
        use(monkeypatch, flavour(host_cuda, code_in_plan=compatible))
        with DecoderRunner.open(folder) as runner:
            assert runner.limits["num_prompts"] == (1, 3)
    # Code in a plan is executed for a set that says so, and for no other.
    use(monkeypatch, flavour(host_cuda, code_in_plan=True))
    with pytest.raises(ManifestError, match=r"could not load decoder\.engine"):
        DecoderRunner.open(tmp_path / "without")


def test_a_set_with_an_image_encoder_takes_photos(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, flavour(host_cuda))
    encoder = functools.partial(write_tiny_encoder, precision="fp32")
    sources = tiny_sources(1, OPTIONS)
    build_set(sources, RECIPE, tmp_path, flavour=RTX, encoder=GraphSource(encoder), engine_builder=tiny_build())
    given: dict[str, Any] = {"points": [[5, 6]], "labels": [1], "image_size": (20, 30)}
    with DecoderRunner.open(tmp_path, in_flight=2) as runner:
        assert runner.takes_photos
        assert runner.checkpoint_sha256 == "ab" * 32
        Predictor(runner, SimpleNamespace(embed=None, checkpoint_sha256="ab" * 32))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="image_encoder is another one than the decoder's"):
            Predictor(runner, SimpleNamespace(embed=None, checkpoint_sha256="cd" * 32))  # type: ignore[arg-type]
        runner.warm_up([(1, 2)])
        runner.set_image(toy_photo(7))
        found = runner.decode(**given, copy=True)
        runner.set_image(toy_embedding(7))
        np.testing.assert_array_equal(runner.decode(**given).masks, found.masks)
    for asked in ({"photos": False}, {"role": "decode"}):
        with DecoderRunner.open(tmp_path, **asked) as runner:
            assert not runner.takes_photos
    path = tmp_path / "manifest.json"
    written = json.loads(path.read_text())
    written["graphs"][1]["checkpoint_sha256"] = "cd" * 32
    path.write_text(json.dumps(written))
    with pytest.raises(GraphError, match="is of another checkpoint than its decoder; build both from one"):
        DecoderRunner.open(tmp_path)


def test_an_engine_tuned_on_another_gpu_model_is_warned_of(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, flavour(host_cuda))
    tiny_set(tmp_path, recipe=RECIPE, options=OPTIONS)
    path = tmp_path / "manifest.json"
    written = json.loads(path.read_text())
    for model, warned in (("host-memory CUDA (tests), 0 multiprocessors", False), ("NVIDIA L4, 58 multiprocessors", True)):
        caplog.clear()
        path.write_text(json.dumps({**written, "gpu_model": model}))
        DecoderRunner.open(tmp_path).close()
        assert ("built on NVIDIA L4, 58 multiprocessors, this is host-memory CUDA" in caplog.text) == warned


def test_what_cannot_be_opened_is_said_and_leaves_nothing(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, engine_set: Path
) -> None:
    use(monkeypatch, flavour(host_cuda, deserializes=False))
    with pytest.raises(ManifestError, match=r"TensorRT-RTX 1\.7\.1\.116 could not load decoder\.engine: .*it is torn"):
        DecoderRunner.open(engine_set)
    with pytest.raises(ManifestError, match="has no 'decode_mask' graph"):
        DecoderRunner.open(engine_set, role="decode_mask")
    use(monkeypatch, flavour(host_cuda))
    with pytest.raises(InferenceError, match="no GPU number 3"):
        DecoderRunner.open(engine_set, device=3)
    (engine_set / "decoder.engine").write_bytes(b"changed")
    with pytest.raises(ManifestError, match="is not the file that was built"):
        DecoderRunner.open(engine_set)
    with pytest.raises(ManifestError, match="is no engine set"):
        DecoderRunner.open(engine_set / "elsewhere")
    assert not host_cuda.held


def test_all_engines_of_a_flavour_are_opened_with_one_logger_that_stays() -> None:
    """TensorRT keeps the address of the first logger for the life of the process."""

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            assert level == self.WARNING

    assert _logger(Logger) is _logger(Logger)


def test_the_builders_loggers_are_never_freed() -> None:
    """TensorRT goes on using the first logger of the process, and does not keep it alive."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = weakref.ref(make_logger(trt))
    gc.collect()
    assert logger() is not None
