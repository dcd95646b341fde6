"""Kills builds of one folder with SIGKILL and prints, as JSON, how often a whole set was left and how often none.

Argument 1 is the folder, 2 "random" (100 moments drawn at random) or "every" (before every file operation in turn, for each
pair of an older and a newer set with one graph or two). An
AssertionError ends it if a manifest ever stands beside anything but what its own build wrote: hashes would tell a runner,
but it must not come to that. A process of its own, because it forks.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.engine_sets import RTX, tiny_build, tiny_sources
from trt_sam.engine.engine_set import build_set
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import ManifestError
from trt_sam.recipe import EngineRecipe


def build(folder: Path, number: int, graphs: int) -> None:
    """Build set `number`: its recipe, graphs and engines all carry the number, so that a mixture is noticed."""
    name = f"set-{number}-{graphs}"
    build_set(
        tiny_sources(graphs, name=name),
        EngineRecipe(name=name, decode_mask=graphs == 2),
        folder,
        flavour=RTX,
        engine_builder=tiny_build(name.encode() * 1000),
    )


def accepted(folder: Path) -> str:
    """The name of the set that a runner would accept, or "none"; AssertionError for a mixture."""
    try:
        manifest = open_manifest(folder, verify=False)
    except ManifestError:
        return "none"
    try:
        manifest.verify()
    except ManifestError as error:
        raise AssertionError(f"a manifest stands beside files of another build: {error}") from error
    name = manifest.recipe.name
    assert len(manifest.graphs) == int(name[-1]), name
    for graph in manifest.graphs:
        assert manifest.read(graph.engine) == name.encode() * 1000, name
        assert name.encode() in manifest.read(graph.onnx), name
    return name


def kill_at_random(folder: Path, rng: random.Random) -> None:
    """Fork a child that builds again and again, and kill it in the middle."""
    child = os.fork()
    if child == 0:
        for number in range(1_000_000):
            build(folder, number, 1 + number // 2 % 2)
    time.sleep(rng.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_at_operation(folder: Path, number: int, graphs: int) -> bool:
    """Fork a child that dies before its `number`-th file operation; False where the build ended before that."""
    child = os.fork()
    if child == 0:
        left = number
        watched = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime")

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in watched:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        build(folder, number, graphs)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def check_leftovers(folder: Path, graphs: int) -> None:
    """Nothing but the set lies in the folder once a build has ended, whatever was killed before."""
    left = {path.name for path in folder.iterdir()}
    assert left == {"manifest.json", *(f"{stem}.{end}" for stem in STEMS[:graphs] for end in ("onnx", "engine"))}, left


STEMS = ("decoder", "decoder_mask")


def main() -> None:
    folder, seen = Path(sys.argv[1]), Counter[str]()
    if sys.argv[2] == "random":
        rng = random.Random(7)
        for _ in range(100):
            kill_at_random(folder, rng)
            seen["none" if accepted(folder) == "none" else "whole"] += 1
    else:
        for older, newer in itertools.product((1, 2), repeat=2):
            number = 0
            build(folder, -1, older)
            while kill_at_operation(folder, number, newer):
                seen["none" if accepted(folder) == "none" else "whole"] += 1
                number += 1
                # What was killed meets a build of one graph, or of two.
                for graphs in (1 + number % 2, older):
                    build(folder, -1, graphs)
                    check_leftovers(folder, graphs)
    build(folder, -2, 1)
    assert accepted(folder) == "set--2-1"
    left = sorted(path.name for path in folder.iterdir())
    print(json.dumps({**seen, "left": left}))


if __name__ == "__main__":
    main()
