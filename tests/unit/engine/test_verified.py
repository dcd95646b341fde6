"""What `build` ends with where the GPU is: engines judged before they are installed, over the host-memory driver."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import trt_sam.commands.build as command
from tests.engine_sets import FILES, MASK, PLAIN, RECIPE, RTX, names
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.made_answers import example
from tests.fixtures.ort_engine import OrtEngine
from tests.fixtures.toy_decoder import toy_decoder
from tests.fixtures.toy_set import graph_as_engine, load_toy_engines, toy_sources, write_toy
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.commands._verify import GoldenVerifier, VerdictError
from trt_sam.engine.builder import BuildResult
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import BuildError, InputError
from trt_sam.gate.answers import answer_of
from trt_sam.gate.golden import Golden, save_golden
from trt_sam.gate.limits import ARITHMETICS, limits_for
from trt_sam.progress import Stages

pytestmark = pytest.mark.hostcuda

BOTH = sorted([*FILES, "decoder_mask.engine", "decoder_mask.onnx"])
ENOUGH = {arithmetic: limits_for(arithmetic, {"min_prompts": 4}) for arithmetic in ARITHMETICS}


@pytest.fixture(autouse=True)
def engines(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> list[OrtEngine]:
    monkeypatch.setattr(command, "choose_flavour", lambda backend: RTX)
    monkeypatch.setattr(command, "build_set", functools.partial(build_set, engine_builder=graph_as_engine))
    return load_toy_engines(host_cuda, monkeypatch)


def golden(folder: Path, scale: int = 1, sha256: str = "") -> Golden:
    """Clicks, with what the toy decoder answers; or one whose answers are `scale` times as large."""
    session = ort.InferenceSession(toy_decoder(PLAIN), providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    examples, answers = [], []
    for seed in (1, 2):
        asked = example(4, seed=seed)
        feed = {name: array for name, array in asked.feed.items() if name in wanted}
        found = zip((each.name for each in session.get_outputs()), session.run(None, feed), strict=True)
        examples.append(asked)
        answers.append(answer_of({name: scale * array.astype(np.float32) for name, array in found}))
    made = Golden("toy", sha256, tuple(examples), tuple(answers), {"numpy": "2"}, str(folder / "golden.npz"))
    save_golden(made.path, made)
    return made


def alike(sha256: str = "") -> list[GraphSource]:
    """Two graphs that answer the same to prompts without a mask: `write_toy` triples the scale of one that takes masks."""
    scales = ((PLAIN, 0.001), (MASK, 0.001 / 3))
    return [GraphSource(functools.partial(write_toy, options=each, scale=scale, sha256=sha256)) for each, scale in scales]


def verifier(output: Path, data: Golden | None, **changes: Any) -> GoldenVerifier:
    given = {"limits": ENOUGH, "stages": Stages({"verify": 1}), **changes}
    return GoldenVerifier(RTX, 0, output, golden=data, **given)


def build(output: Path, judge: GoldenVerifier, sources: list[GraphSource] | None = None, **more: Any) -> dict[str, Any]:
    built = build_set(
        sources or toy_sources(), RECIPE, output, flavour=RTX, verifier=judge, **{"engine_builder": graph_as_engine, **more}
    )
    assert open_manifest(output) == built.manifest
    found: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return found


def test_the_manifest_says_how_each_decoder_was_judged(tmp_path: Path) -> None:
    data = golden(tmp_path)
    found = build(tmp_path / "set", verifier(tmp_path / "set", data), alike())
    told = found["verified"]
    assert names(tmp_path / "set") == BOTH
    assert told["golden"] == {"file": "golden.npz", "sha256": data.sha256, "checkpoint": "toy"}
    assert (told["prompts"], told["not_judged"], found["not_verified"]) == (8, [], "")
    assert "multiprocessors" in told["gpu"]
    for role in ("decode", "decode_mask"):
        graph = told["graphs"][role]
        assert (graph["verdict"], graph["figures"]["min_mean_iou"], graph["limits"]["min_prompts"]) == ("pass", 1.0, 4)
        assert graph["executed_by"] == f"tensorrt_rtx {RTX.version} on GPU 0"


def test_an_engine_that_fails_is_not_installed_and_the_older_set_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, graph = tmp_path / "set", tmp_path / "toy.onnx"
    write_toy(graph, PLAIN)
    golden(tmp_path)
    (tmp_path / "limits.toml").write_text("min_prompts = 4\n")
    asked = ["build", "--onnx", str(graph), "--output", str(output), "--golden", str(tmp_path / "golden.npz")]
    asked += ["--limits", str(tmp_path / "limits.toml")]
    assert main(asked) == 0
    assert "verified on" in capsys.readouterr().out
    before = (output / "manifest.json").read_bytes()

    golden(tmp_path, scale=3)
    assert main(asked) == 1
    told = capsys.readouterr()
    assert told.out == ""
    line = error_line(told.err)
    assert "are not installed (decode: " in line
    assert "SQNR of the logits" in line
    assert f"--no-verify installs the set unjudged, to be looked at with trt-sam compare --golden {tmp_path}" in line
    assert (output / "manifest.json").read_bytes() == before
    assert names(output) == FILES

    unjudged = [*asked[: asked.index("--golden")], "--no-verify"]
    assert main(unjudged) == 0
    assert "not verified: --no-verify was given" in capsys.readouterr().out
    assert open_manifest(output).verified is None
    assert main(["inspect", str(output)]) == 0
    assert "not verified: --no-verify was given" in capsys.readouterr().out


def test_a_new_folder_of_a_set_that_fails_is_gone(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match=r"fail by golden data golden\.npz"):
        build(tmp_path / "set", verifier(tmp_path / "set", golden(tmp_path, scale=3)))
    assert not (tmp_path / "set").exists()


def test_what_could_not_be_judged_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**changes: Any) -> str:
        found = build(tmp_path / "set", verifier(tmp_path / "set", **{"data": None, **changes}), alike())
        assert found["verified"] is None
        return str(found["not_verified"])

    assert reason().startswith("there are no golden data of its checkpoint")
    few = reason(data=golden(tmp_path), limits={each: limits_for(each) for each in ARITHMETICS})
    assert few.startswith("golden data golden.npz are too few prompts to tell (decode: prompts 8, must be at least 256")
    for cc, words in (
        ("7.5", "the GPU of this machine, whose compute capability is 7.5"),
        (None, "there was no GPU to run it"),
    ):
        monkeypatch.setattr("trt_sam.commands._verify.gpu_compute_capability", lambda device, cc=cc: cc)
        assert words in reason()


def test_golden_data_that_cannot_judge_are_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> BuildResult:
        raise AssertionError("built")

    other = golden(tmp_path, sha256="cd" * 32)
    with pytest.raises(
        InputError, match=r"what is built for .* holds the weights abababababab, the golden data .* are of toy .cdcdcdcdcdcd."
    ):
        build(tmp_path / "set", verifier(tmp_path / "set", other), alike("ab" * 32), engine_builder=never)
    asked = ["build", "--onnx", "toy.onnx", "--output", str(tmp_path / "set"), "--golden", other.path]
    assert main([*asked, "--no-verify"]) == 2
    assert "--no-verify judges nothing, so --golden is of no use" in error_line(capsys.readouterr().err)
    monkeypatch.setattr("trt_sam.commands._verify.gpu_compute_capability", lambda device: None)
    assert main(asked) == 2
    assert "--golden judges the built engine on GPU 0, and there is none" in error_line(capsys.readouterr().err)


def test_an_engine_that_does_not_run_is_not_installed(tmp_path: Path) -> None:
    def torn(path: Path, recipe: Any, **_: Any) -> BuildResult:
        return BuildResult(b"torn", (), (), 0.5, (), ())

    output = tmp_path / "set"
    with pytest.raises(BuildError, match=r"decoder\.engine does not run: .* could not load decoder\.engine") as seen:
        build(output, verifier(output, golden(tmp_path)), engine_builder=torn)
    assert not isinstance(seen.value, VerdictError)
    assert ".trt-sam-build-" not in str(seen.value)
    assert not output.exists()
