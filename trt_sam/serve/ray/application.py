"""`app`: what `serve run` and `serve deploy` build, from the arguments in a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_sam._lazy import require
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import InputError
from trt_sam.graph.advice import BUILD_SET, NEW_SET
from trt_sam.runtime.set_graphs import graphs_of_set, is_set
from trt_sam.serve.faults import Refusal
from trt_sam.serve.ray.edge import Edge
from trt_sam.serve.ray.replica import Clicks, Decoded, Replica, Resident, runs_on_gpu

__all__ = ["app"]

_DEFAULTS: Mapping[str, Any] = {"images": 64, "threads": 1, "batch": 8, "wait_ms": 2.0}
_NEEDED = ("set", "pictures")
_REPLICAS_PER_GPU = 4
"""The decoder alone does not fill a large GPU; the configuration file says how many where this is not right."""


def app(args: Mapping[str, Any]) -> Any:
    """The application: `Edge`, which has the addresses, over `Sam`, which has the embeddings.

    Args:
        args: `set`, a folder with an image encoder, and `pictures`, a folder for what clients send, both the same on all
            machines; and perhaps `images` that a replica keeps, `threads` of each on a CPU, and how many clicks are gathered
            (`batch`) in at most how long (`wait_ms`).

    Raises:
        InputError: an argument is missing, unknown or impossible.
        ManifestError: the set cannot be used.
        MissingDependencyError: ray is not installed.
    """
    serve = require("ray.serve", "to run a deployment")
    found = _checked(args)
    folder, pictures = str(Path(found["set"]).absolute()), str(Path(found["pictures"]).absolute())
    if not is_set(folder):
        raise InputError(f"{folder} is no set with a manifest; write one with {NEW_SET}, or engines with {BUILD_SET}")
    if "encode" not in graphs_of_set(folder):
        again = open_manifest(folder, verify=False).command(encoder=True)
        raise InputError(f"set {folder} has no image encoder; write it again with {again}")
    images, threads = found["images"], found["threads"]

    class Sam(Replica):
        """A replica, as Ray calls it."""

        def __init__(self) -> None:
            super().__init__(folder, pictures, images=images, threads=threads)

        async def ready(self) -> None:
            """Answer."""

        async def embed(self, name: str) -> dict[str, Any]:
            """Have the embedding of a picture."""
            try:
                resident: Resident = await self.resident(name)
            except Refusal as refusal:
                return _as_data(refusal)
            return {"size": list(resident.size)}

        async def masks_on(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
            """Masks on a picture; its embedding is made again where it is not here, or has just gone."""
            try:
                try:
                    return await self.masks(await self.resident(name), asked, self.gathered)
                except Refusal as refusal:
                    if refusal.code != "image_unknown":
                        raise
                    return await self.masks(await self.load(name), asked, self.gathered)
            except Refusal as refusal:
                return _as_data(refusal)

        @serve.multiplexed(max_num_models_per_replica=images)  # type: ignore[untyped-decorator, unused-ignore]
        async def resident(self, name: str) -> Resident:
            """A picture whose embedding is here."""
            return await self.load(name)

        @serve.batch(max_batch_size=found["batch"], batch_wait_timeout_s=found["wait_ms"] / 1e3)  # type: ignore[untyped-decorator, unused-ignore]
        async def gathered(self, clicks: list[Clicks]) -> list[Decoded]:
            """What came in a moment, decoded together."""
            return await self.decode(clicks)

    gpu = runs_on_gpu(folder)
    sam = serve.deployment(
        Sam,
        name="Sam",
        ray_actor_options={"num_gpus": 1 / _REPLICAS_PER_GPU} if gpu else {"num_cpus": threads},
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 4},
        max_ongoing_requests=16,
        max_queued_requests=64,
    )
    # More than may wait for `Sam`, so that it is `Edge` that tells clients to come again, and they do not wait before it.
    edge = serve.deployment(Edge, name="Edge", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
    return edge.bind(sam.bind(), pictures)


def _checked(args: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_DEFAULTS, **args}
    for name in found:
        if name not in _DEFAULTS and name not in _NEEDED:
            raise InputError(f"{name!r} is no argument; there are {', '.join([*_NEEDED, *_DEFAULTS])}")
    for name in _NEEDED:
        if not found.get(name):
            raise InputError(f"{name} is missing; give {' and '.join(f'{each}=DIR' for each in _NEEDED)}")
    for name, default in _DEFAULTS.items():
        try:
            found[name] = type(default)(found[name])  # the command line gives texts
        except (TypeError, ValueError):
            raise InputError(f"{name} is {found[name]!r}, must be a number") from None
        if found[name] <= 0:
            raise InputError(f"{name} is {found[name]}, must be more than 0")
    return found


def _as_data(refusal: Refusal) -> dict[str, Any]:
    """A refusal as it crosses processes."""
    return {"refused": [refusal.status, refusal.code, str(refusal)]}
