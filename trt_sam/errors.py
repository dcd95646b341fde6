"""Every error that is the user's to mend. Bugs are other exceptions and keep their traceback.

TrtSamError                 the command line prints it as one line and exits with code 2
+-- MissingDependencyError  an optional package is not installed; names the pip command
+-- InputError              a file, path, image, prompt or option that cannot be used
|   +-- ContractError       a feed that does not fit the decoder's tensors
|   +-- CheckpointError     a checkpoint that cannot be read or is not a SAM
|   +-- RecipeError         a recipe with an unknown key or an impossible value
|   +-- GraphError          an ONNX file that is not a SAM decoder of this package
+-- ExportError             a graph that was written but does not match PyTorch
+-- BuildError              TensorRT could not parse the graph or build the engine
+-- ManifestError           an engine without its manifest, or one that does not fit this machine
+-- CalibrationError        calibration without data, or with data that cannot be used
+-- InferenceError          execution failed; the runner says whether it is still open
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BuildError",
    "CalibrationError",
    "CheckpointError",
    "ContractError",
    "ExportError",
    "GraphError",
    "InferenceError",
    "InputError",
    "ManifestError",
    "MissingDependencyError",
    "RecipeError",
    "TrtSamError",
    "did_you_mean",
    "first_line",
]


class TrtSamError(Exception):
    """Base of all errors that a user can mend."""


class MissingDependencyError(TrtSamError):
    """An optional package is not installed."""


class InputError(TrtSamError):
    """A file, path, image, prompt or option that cannot be used."""


class ContractError(InputError):
    """A feed that does not fit the decoder's tensors."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read or is not a SAM."""


class RecipeError(InputError):
    """A recipe with an unknown key or an impossible value."""


class GraphError(InputError):
    """An ONNX file that is not a SAM decoder of this package."""


class ExportError(TrtSamError):
    """A graph that was written but does not match PyTorch."""


class BuildError(TrtSamError):
    """TensorRT could not parse the graph or build the engine."""


class ManifestError(TrtSamError):
    """An engine without its manifest, or one that does not fit this machine."""


class CalibrationError(TrtSamError):
    """Calibration without data, or with data that cannot be used."""


class InferenceError(TrtSamError):
    """Execution failed."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 200 characters; the name of its class where there is none."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def did_you_mean(near: Iterable[object]) -> str:
    """The question for a message, "did you mean A or B? ", with a space behind it; empty where nothing is `near`."""
    names = " or ".join(map(str, near))
    return f"did you mean {names}? " if names else ""
