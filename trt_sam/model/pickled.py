"""What a PyTorch file holds, with nothing of it executed: tensors and plain data, other objects as empty stand-ins.

Files are read by PyTorch's own restricted unpickler (`weights_only=True`), which calls nothing but what builds tensors.
Trainers save their settings beside the weights (`argparse.Namespace`, `pathlib.Path`, numpy scalars): each name that the
unpickler does not know stands for an empty class of ours, which takes whatever it is given and does nothing.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trt_sam._files import existing_file
from trt_sam.errors import CheckpointError, InputError

__all__ = ["read_pickled"]

_MOST_TRIES = 300
"""Each finds one more name that is not known."""
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global")
_NO_MAPPING = re.compile(r"Can only SETITEMS? for .* but got <class '([^']+)'>")
_NO_LIST = re.compile(r"Can only (?:append to|extend) lists, but got <class '([^']+)'>")


class _Anything:
    """An object whose class is not known: it may be made and be given a state, and forgets both."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _AnyMapping(_Anything):
    """The same, where entries are put into it."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class _AnyList(_Anything):
    """The same, where items are appended."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return []


def read_pickled(path: Path) -> Any:
    """What is in the PyTorch file at `path`; its tensors stay mapped to the file where its format allows it.

    Raises:
        CheckpointError: missing, empty, truncated, no PyTorch file, TorchScript, or it calls the operating system.
    """
    try:
        existing_file(path, "checkpoint")
        if _is_torchscript(path):
            raise CheckpointError(
                f"{path} is a TorchScript archive, a compiled model; what is needed are its weights: save model.state_dict()"
            )
        return _read(path)
    except CheckpointError:
        raise
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
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0][:120]
        raise CheckpointError(f"checkpoint {path} is damaged, truncated or no state ({reason}); get it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
        # A file of another kind, read as a pickle, may trip over anything.
        raise CheckpointError(f"{path} is not a PyTorch checkpoint; give a .pth or a Hugging Face folder") from None


def _read(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)
    stand_ins: dict[str, type[_Anything]] = {}
    for _ in range(_MOST_TRIES):
        try:
            return _load(path, stand_ins, mapped=mapped)
        except pickle.UnpicklingError as error:
            wanted = _wanted(str(error))
            if wanted is None:
                raise
            # The unpickler tells names of `builtins` without their module.
            module, _, name = wanted[0].rpartition(".")
            stand_ins[wanted[0]] = type(name, (wanted[1],), {"__module__": module or "builtins"})
    return _load(path, stand_ins, mapped=mapped)


def _load(path: Path, stand_ins: Mapping[str, type[_Anything]], *, mapped: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(list(stand_ins.values())):
        warnings.simplefilter("ignore")  # torch warns about what raises a moment later
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _wanted(message: str) -> tuple[str, type[_Anything]] | None:
    """The name that the unpickler stopped at, and what kind of stand-in takes it further."""
    for pattern, kind in ((_UNKNOWN, _Anything), (_NO_MAPPING, _AnyMapping), (_NO_LIST, _AnyList)):
        found = pattern.search(message)
        if found is not None:
            return found.group(1), kind
    return None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
