"""Named tensors from disk or hub, with nothing that was read ever executed: Meta's `.pth` and Hugging Face folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.download import FOLDER_WEIGHTS
from trt_sam.errors import CheckpointError, InputError
from trt_sam.model.pickled import read_pickled

__all__ = ["download", "read_folder", "read_pth", "read_safetensors"]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
_DEPTH = 3
_DECODER = re.compile(r"(|.*?\.)mask_decoder\.")
_WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into the names of what they wrap."""
_HUB_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")


def read_pth(path: Path) -> dict[str, Tensor]:
    """The state in a PyTorch file, taken out of what trainers put around it, and free of prefixes like "module.".

    Tensors stay mapped to the file where its format allows it: the 2.5 GB of vit_h are read only if used. Objects beside the
    weights are passed over, unread (see `pickled`).

    Raises:
        CheckpointError: missing, empty, truncated, no PyTorch file, holds code, or is no dictionary of tensors.
    """
    loaded = read_pickled(path)
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"checkpoint {path} holds a {type(loaded).__name__}, must hold a dictionary of tensors by name; save the "
            "state_dict() alone with torch.save"
        )
    return _plain_names(_tensors_of(_state_in(loaded), path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The state in one safetensors file, free of prefixes; raises as `read_folder`."""
    return _plain_names(_read_safetensors(path))


def read_folder(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """config.json, None where there is none, and all tensors of a Hugging Face folder.

    Weights are `model.safetensors` or `pytorch_model.bin`, in one file or in shards with an index.

    Raises:
        CheckpointError: a file is missing, empty, truncated or contradicts the index.
        MissingDependencyError: safetensors is not installed.
    """
    config = _read_json(folder / "config.json") if (folder / "config.json").exists() else None
    for single, read in zip(FOLDER_WEIGHTS, (_read_safetensors, read_pth), strict=True):
        if (folder / single).exists():
            return config, read(folder / single)
        if (folder / f"{single}.index.json").exists():
            return config, _read_shards(folder, folder / f"{single}.index.json", read)
    return config, _read_safetensors(folder / FOLDER_WEIGHTS[0])  # which is missing, and says so


def _read_shards(folder: Path, index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; download the folder again")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}, must be a file of the same folder")
        state.update(read(folder / shard))
    missing = [name for name in weight_map if name not in state]
    if missing:
        raise CheckpointError(f"{folder}: the shards lack {missing[0]} and {len(missing) - 1} more that the index names")
    return state


def download(hub_id: str) -> Path:
    """Fetch config and weights of a hub model, or find them in the local cache; returns the folder.

    Raises:
        CheckpointError: no such model, no access, or no network and nothing cached.
        MissingDependencyError: huggingface_hub is not installed.
    """
    hub: Any = require("huggingface_hub", "to load from the Hugging Face hub")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the hub client's own, its HTTP library's, the system's: they differ between versions
        raise CheckpointError(
            f"cannot get {hub_id!r} from the Hugging Face hub ({type(error).__name__}), and it is neither a local path nor "
            "cached; check the name, the network and HF_HUB_OFFLINE, or give a local folder or .pth"
        ) from error


def _state_in(loaded: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The dictionary with a decoder's tensors: `loaded` itself, or one inside it, those of the usual names first."""
    level: list[Mapping[Any, Any]] = [loaded]
    for _ in range(_DEPTH):
        for each in level:
            if any(isinstance(value, Tensor) and _DECODER.match(str(name)) for name, value in each.items()):
                return each
        level = [
            each[name] for each in level for name in sorted(each, key=_rank) if isinstance(each[name], Mapping) and each[name]
        ]
    return next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)


def _rank(name: object) -> int:
    return _WRAPPERS.index(name) if name in _WRAPPERS else len(_WRAPPERS)


def _tensors_of(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state; what else stands beside a decoder is left out, and is a fault elsewhere."""
    with_decoder = any(_DECODER.match(str(name)) for name in state)
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
        elif not with_decoder or _DECODER.match(str(name)):
            kind = type(value).__name__
            raise CheckpointError(f"checkpoint {path}: {name!r} is a {kind}, must be a tensor; save the state_dict() alone")
    return tensors


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put into them, and without what stands before "mask_decoder." ("module.", "sam_model.").

    Where there is such a prefix, tensors without it are not the model's, and are left out.
    """
    state = {_WRAPPED.sub("", name): value for name, value in state.items()}
    found = next((match for match in map(_DECODER.match, state) if match), None)
    prefix = found.group(1) if found else ""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads(existing_file(path, "checkpoint file").read_text(encoding="utf-8"))
    except InputError as error:
        raise CheckpointError(f"{error}; a Hugging Face folder holds config.json and model.safetensors") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, must hold an object; download it again")
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", "to read Hugging Face checkpoints")
    try:
        existing_file(path, "checkpoint file")
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except InputError as error:
        raise CheckpointError(f"{error}; a Hugging Face folder holds config.json and model.safetensors") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); download it again") from None
