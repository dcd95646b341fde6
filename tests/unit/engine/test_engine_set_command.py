"""`trt-sam build --decode-mask`: what is refused, what is calibrated on what, and which step is not done twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import calibrators.pipeline
import trt_sam.commands.build as command
import trt_sam.graph.export
from tests.engine_sets import RTX, tiny_build, write_tiny_graph
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.commands import _build_sources
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.engine.engine_set import build_set
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.manifest import open_manifest
from trt_sam.progress import Progress, Stages
from trt_sam.recipe import EngineRecipe, GraphOptions, QuantizationOptions


class Calibrated:
    """Stands in for `quantize_decoder`: writes a tiny graph that names its feeds, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, float]] = []
        """Whether the graph takes masks, and the share of prompts that brought one."""
        self.fails_with_mask = False
        self.feeds: list[Any] = []
        self.judges: list[Any] = []

    def __call__(
        self, checkpoint: Any, feeds: Any, options: GraphOptions, quantization: Any, path: Path, **options_: Any
    ) -> Any:
        self.feeds.append(feeds)
        self.judges.append(options_["judges"])
        if options.mask_input and self.fails_with_mask:
            raise KeyboardInterrupt
        flags = [feed.get("has_mask_input", np.zeros(len(feed["point_labels"]))) for feed in feeds]
        self.asked.append((options.mask_input, float(np.concatenate(flags).mean())))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_graph(path, options)
        model = onnx.load(path)
        about = {each.key: each.value for each in model.metadata_props}
        helper.set_model_props(model, {**about, "trt_sam.calibration": json.dumps({"fingerprint": feeds.fingerprint})})
        onnx.save(model, path)
        return SimpleNamespace(to_dict=dict, coarse=())


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Calibrated:
    """No torch, no calibration, no TensorRT: all else is the command's own."""
    stand_in = Calibrated()
    monkeypatch.setattr(calibrators.pipeline, "quantize_decoder", stand_in)
    checkpoint = SimpleNamespace(sha256="ab" * 32, encoder_kind="other", encoder_sha256="", decoder=None)
    monkeypatch.setattr(_build_sources, "_load", lambda *_: checkpoint)
    monkeypatch.setattr(command, "choose_flavour", lambda backend: RTX)
    monkeypatch.setattr(command, "build_set", lambda *given, **named: build_set(*given, **named, engine_builder=tiny_build()))
    return stand_in


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for seed in (1, 2):
        np.save(folder / f"{seed}.npy", np.random.default_rng(seed).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32))
    return folder


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_each_graph_is_calibrated_on_its_own_prompts_and_no_step_is_done_twice(
    precision: str, calibrated: Calibrated, embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    build = ["build", "--checkpoint", "standin", "--precision", precision, "--embeddings", str(embeddings), "--random-prompts"]
    build += ["--prompts-per-image", "8", "--output", str(output)]
    both = [*build, "--decode-mask"]

    # Interrupted between the graphs: the first is not calibrated again.
    calibrated.fails_with_mask = True
    assert main(both) == 130
    assert not (output / "manifest.json").exists()
    calibrated.fails_with_mask = False
    assert main(both) == 0
    assert calibrated.asked == [(False, 0.0), (True, 0.25)]
    manifest = open_manifest(output)
    reports = [json.loads(path.read_text()) for path in (output / "calibration").glob(f"{precision}-*.json")]
    fingerprints = {report["inputs"]["graph"]["mask_input"]: report["inputs"]["feeds"] for report in reports}
    assert [graph.calibration for graph in manifest.graphs] == [fingerprints[False], fingerprints[True]]
    assert fingerprints[False] != fingerprints[True]

    # Finished: nothing is to do. Its engines lost: only they are built. One graph is another set, of what was calibrated.
    capsys.readouterr()
    before = (output / "manifest.json").read_bytes()
    assert main(both) == 0
    assert "built before from the same graphs, nothing to do" in capsys.readouterr().out
    assert (output / "manifest.json").read_bytes() == before
    (output / "decoder_mask.engine").write_bytes(b"damaged")
    assert main(both) == 0
    assert open_manifest(output).graph("decode_mask").role == "decode_mask"
    assert main(build) == 0
    assert [graph.role for graph in open_manifest(output).graphs] == ["decode"]
    assert sorted(path.name for path in output.iterdir()) == ["calibration", "decoder.engine", "decoder.onnx", "manifest.json"]
    assert main(both) == 0
    assert len(calibrated.asked) == 2

    # A changed embedding is never met by an old result.
    shutil.copyfile(embeddings / "1.npy", embeddings / "3.npy")
    np.save(embeddings / "1.npy", np.random.default_rng(5).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32))
    assert main(both) == 0
    assert [mask for mask, _ in calibrated.asked] == [False, True] * 2


def test_the_summary_and_the_report_have_both_graphs(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(decoder: object, path: Path, options: GraphOptions, *, checkpoint_sha256: str, progress: Progress) -> None:
        write_tiny_graph(path, options)

    monkeypatch.setattr(trt_sam.graph.export, "export_decoder", export)
    report = tmp_path / "report.json"
    recipe = tmp_path / "mine.toml"
    recipe.write_text("decode_mask = true\n")
    arguments = ["--checkpoint", "standin", "--recipe", str(recipe), "--output", str(tmp_path / "set")]
    assert main(["build", *arguments, "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "decoder.onnx, decoder.engine, decoder_mask.onnx, decoder_mask.engine, manifest.json" in out
    assert "built in 1.0 s" in out
    assert "  decode: profile 1: 3 kernels" in out
    assert "  decode_mask: profile 1: 3 kernels" in out
    data = json.loads(report.read_text())
    assert [graph["role"] for graph in data["graphs"]] == ["decode", "decode_mask"]
    assert data["recipe"]["decode_mask"] is True
    # What inspects a set finds both, and each by its name.
    assert main(["inspect", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "role decode, " in out
    assert "role decode_mask, " in out
    assert main(["inspect", str(tmp_path / "set" / "decoder_mask.engine")]) == 0
    assert "role decode, " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--checkpoint", "standin", "--decode-mask", "--mask-input"], "leave --mask-input out"),
        (["--checkpoint", "standin", "--recipe", "RECIPE", "--mask-input"], "leave --mask-input out"),
        (["--checkpoint", "standin", "--recipe", "RECIPE2"], "leave graph.mask_input of the recipe out"),
        (["--onnx", "GRAPH", "--decode-mask"], "--decode-mask makes two graphs of a checkpoint, and --onnx gives one"),
        (["--onnx", "GRAPH", "--recipe", "RECIPE"], "decode_mask of the recipe makes two graphs"),
    ],
)
def test_what_cannot_be_is_one_line(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name.lower()}.toml" for name in ("RECIPE", "RECIPE2")}
    files["RECIPE"].write_text("decode_mask = true\n")
    files["RECIPE2"].write_text("decode_mask = true\n[graph]\nmask_input = true\n")
    files["GRAPH"] = tmp_path / "graph.onnx"
    write_tiny_graph(files["GRAPH"])
    arguments = [str(files.get(flag, flag)) for flag in flags]
    assert main(["build", *arguments, "--output", str(tmp_path / "set")]) == 2
    assert words in error_line(capsys.readouterr().err)
    assert not (tmp_path / "set").exists()


def test_implicit_int8_has_a_calibrator_for_each_graph(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, Any]] = []

    class Feeds(list[str]):
        def __init__(self, mask_input: bool) -> None:
            super().__init__(["mask" if mask_input else "plain"])
            self.fingerprint = f"of {self[0]}"
            self.num_images = 1

    class Request:
        def __init__(self, args: object, recipe: EngineRecipe, *, cache: Path) -> None:
            self._mask_input = recipe.graph.mask_input
            self.data = "photos"

        @contextlib.contextmanager
        def open(self, checkpoint: object, progress: Progress) -> Iterator[Feeds]:
            yield Feeds(self._mask_input)

    def export(decoder: object, path: Path, options: GraphOptions, *, checkpoint_sha256: str, progress: Progress) -> None:
        assert options.precision == "fp32"
        write_tiny_graph(path, options)

    def builder(path: Path, recipe: EngineRecipe, **options: Any) -> Any:
        made.append((path.name, options["make_calibrator"]._feeds))
        return tiny_build()(path, recipe)

    trt = ModuleType("tensorrt")
    trt.IInt8EntropyCalibrator2 = object  # type: ignore[attr-defined]
    trt.BuilderFlag = SimpleNamespace(INT8=1)  # type: ignore[attr-defined]
    flavour = Flavour("tensorrt", "10.16.1.11", trt)
    assert flavour.has_implicit_int8
    monkeypatch.setattr(_build_sources, "calibration_request", Request)
    monkeypatch.setattr(trt_sam.graph.export, "export_decoder", export)
    recipe = EngineRecipe(
        decode_mask=True, graph=GraphOptions(precision="int8"), quantization=QuantizationOptions(method="implicit")
    )
    with contextlib.ExitStack() as stack, Stages(command._shares(recipe)) as stages:
        sources = _build_sources.implicit_sources(SimpleNamespace(output=tmp_path), recipe, flavour, stages, stack)  # type: ignore[arg-type]
        built = build_set(sources, recipe, tmp_path, flavour=flavour, engine_builder=builder)
    assert made == [("decoder.onnx", ["plain"]), ("decoder_mask.onnx", ["mask"])]
    assert [graph.calibration for graph in built.manifest.graphs] == ["of plain", "of mask"]
    assert [graph.options.precision for graph in built.manifest.graphs] == ["fp32", "fp32"]
    assert open_manifest(tmp_path).recipe == recipe


@pytest.mark.parametrize("mask_input", [False, True])
def test_one_graph_is_calibrated_and_warned_of(
    mask_input: bool,
    calibrated: Calibrated,
    embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [
        "--precision",
        "int8",
        "--embeddings",
        str(embeddings),
        "--random-prompts",
        *(["--mask-input"] if mask_input else []),
    ]
    assert main(["build", "--checkpoint", "standin", *flags, "--output", str(tmp_path / "set")]) == 0
    out, err = capsys.readouterr()
    assert "trt-sam: warning: calibrating on few images: 2, give 16 or more\n" in err
    assert "9.0 (H100, H200) and 10.0 (B200) are not among them" in out
    assert "trt-sam bench --engine" in out
    assert calibrated.judges == [None]


def test_of_sixteen_images_four_are_held_back_from_calibration(
    calibrated: Calibrated, embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3, 17):
        np.save(embeddings / f"{seed}.npy", np.random.default_rng(seed).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32))
    flags = ["--precision", "int8", "--embeddings", str(embeddings), "--random-prompts", "--prompts-per-image", "2"]
    assert main(["build", "--checkpoint", "standin", *flags, "--output", str(tmp_path / "set")]) == 0
    assert "few images" not in capsys.readouterr().err
    (judges,), (used,) = calibrated.judges, calibrated.feeds
    assert (used.num_images, judges.num_images) == (12, 4)
    assert not set(used.names) & set(judges.names)
