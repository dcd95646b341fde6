"""Named tensors from disk or hub, with nothing that was read ever executed: Meta's `.pth` and Hugging Face folders."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.errors import CheckpointError, InputError

__all__ = ["download", "looks_like_hub_id", "read_folder", "read_pth"]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
_HUB_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")


def read_pth(path: Path) -> dict[str, Tensor]:
    """The state in a PyTorch file, unwrapped from "model" or "state_dict" and free of prefixes like "module.".

    Tensors stay mapped to the file where its format allows it: the 2.5 GB of vit_h are read only if used.

    Raises:
        CheckpointError: missing, empty, truncated, no PyTorch file, holds code, or is no dictionary of tensors.
    """
    try:
        existing_file(path, "checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about what raises a moment later
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except InputError as error:
        raise CheckpointError(str(error)) from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is not None:
            raise CheckpointError(
                f"checkpoint {path} holds the Python object {code.group(1)}; code in a checkpoint is never run; "
                "save its state_dict() alone with torch.save"
            ) from None
        raise CheckpointError(f"{path} is not a PyTorch checkpoint; give a .pth or a Hugging Face folder") from None
    except (RuntimeError, OSError, EOFError) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0][:120]
        raise CheckpointError(f"checkpoint {path} is damaged, truncated or no state ({reason}); get it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
        # A file of another kind, read as a pickle, may trip over anything.
        raise CheckpointError(f"{path} is not a PyTorch checkpoint; give a .pth or a Hugging Face folder") from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"checkpoint {path} holds a {type(loaded).__name__}, must hold a dictionary of tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"checkpoint {path}: {name!r} is a {kind}, must be a tensor; save the state_dict() alone")
    return _without_prefix(dict(loaded))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a Hugging Face folder, one `model.safetensors` or shards with an index.

    Raises:
        CheckpointError: a file is missing, empty, truncated or contradicts the index.
        MissingDependencyError: safetensors is not installed.
    """
    config = _read_json(folder / "config.json")
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists() or not index.exists():
        return config, _read_safetensors(single)
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; download the folder again")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}, must be a file of the same folder")
        state.update(_read_safetensors(folder / shard))
    missing = [name for name in weight_map if name not in state]
    if missing:
        raise CheckpointError(f"{folder}: the shards lack {missing[0]} and {len(missing) - 1} more that the index names")
    return config, state


def looks_like_hub_id(source: str) -> bool:
    """Whether a source that is no existing path has the form owner/name of the Hugging Face hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None and Path(source).suffix not in {
        *(".pth", ".pt", ".bin", ".safetensors", ".onnx", ".ckpt")
    }


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


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what stands before "mask_decoder." from every name that has it ("module.", "sam_model.")."""
    prefix = next((name.partition("mask_decoder.")[0] for name in state if "mask_decoder." in name), "")
    return {name.removeprefix(prefix): value for name, value in state.items()}


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
