"""Kills builds of one folder with SIGKILL and prints, as JSON, how often a whole set was left and how often none.

Argument 1 is the folder, 2 "random" (100 moments drawn at random) or "every" (before every file operation in turn). An
AssertionError ends it if a manifest ever stands beside anything but what its own build wrote: hashes would tell a runner,
but it must not come to that. A process of its own, because it forks.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.engine_sets import RTX, tiny_build, write_tiny_graph
from trt_sam.engine_set import build_set
from trt_sam.errors import ManifestError
from trt_sam.manifest import open_manifest
from trt_sam.recipe import EngineRecipe


def build(folder: Path, number: int) -> None:
    """Build set `number`: its recipe, graph and engine all carry the number, so that a mixture is noticed."""
    build_set(
        lambda path: write_tiny_graph(path, name=f"set-{number}"),
        EngineRecipe(name=f"set-{number}"),
        folder,
        flavour=RTX,
        engine_builder=tiny_build(f"set-{number}".encode() * 1000),
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
    graph, name = manifest.graph("decode"), manifest.recipe.name
    assert manifest.read(graph.engine) == name.encode() * 1000, name
    assert name.encode() in manifest.read(graph.onnx), name
    return name


def kill_at_random(folder: Path, rng: random.Random) -> None:
    """Fork a child that builds again and again, and kill it in the middle."""
    child = os.fork()
    if child == 0:
        for number in range(1_000_000):
            build(folder, number)
    time.sleep(rng.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_at_operation(folder: Path, number: int) -> bool:
    """Fork a child that dies before its `number`-th file operation; False where the build ended before that."""
    child = os.fork()
    if child == 0:
        left = number
        watched = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in watched:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        build(folder, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def main() -> None:
    folder, seen = Path(sys.argv[1]), Counter[str]()
    if sys.argv[2] == "random":
        rng = random.Random(7)
        for _ in range(100):
            kill_at_random(folder, rng)
            seen["none" if accepted(folder) == "none" else "whole"] += 1
    else:
        number = 0
        build(folder, -1)
        while kill_at_operation(folder, number):
            seen["none" if accepted(folder) == "none" else "whole"] += 1
            number += 1
            build(folder, -1)
    build(folder, -2)
    assert accepted(folder) == "set--2"
    left = sorted(path.name for path in folder.iterdir())
    print(json.dumps({**seen, "left": left}))


if __name__ == "__main__":
    main()
