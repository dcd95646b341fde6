"""Write a model repository for NVIDIA's Triton from a set: the models sam, sam_encoder and sam_decoder.

Example:
  trt-sam triton mobile_sam --output model_repository                                 (graphs in ONNX Runtime, on a CPU)
  trt-sam triton mobile_sam_set/ --output model_repository                            (a set of export --encoder --decode-mask)
  trt-sam triton engine/ --output model_repository --backend tensorrt --tensorrt-version 10.13.3.9

The README.md in it says how Triton is started on it, and what it is asked. The last form takes engines of trt-sam build
--encoder --backend tensorrt: Triton runs only those of its own TensorRT. --tensorrt-version says which one that is (in its
container: echo $TRT_VERSION), so that another is refused here and not there.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from trt_sam.commands._options import CHECKPOINT_HELP, add_cache_argument
from trt_sam.commands._served import cached_set
from trt_sam.errors import InputError
from trt_sam.runtime.set_graphs import is_set

HELP = "a model repository for Triton"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `triton`."""
    parser.add_argument("set", metavar="SET", help=f"a set of export or build --encoder; or {CHECKPOINT_HELP}")
    add_cache_argument(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the repository's folder")
    parser.add_argument(
        "--backend", choices=("python", "tensorrt"), default="python", help="what runs the graphs (default: %(default)s)"
    )
    parser.add_argument("--tensorrt-version", metavar="V", help="of the Triton that will run the engines")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="embeddings that are kept (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a repository that is there")


def run(args: argparse.Namespace) -> int:
    """Write the repository; 0 when it is whole."""
    version = args.tensorrt_version
    if version is not None and args.backend != "tensorrt":
        raise InputError("--tensorrt-version is for --backend tensorrt; leave it out")
    if version is not None and not re.fullmatch(r"\d+(\.\d+)+", version):
        raise InputError(f"--tensorrt-version is {version!r}, must be numbers as 10.13.3.9")
    from trt_sam.serve.triton import write_repository

    # A checkpoint becomes a set of graphs in the cache, as for serve; engines are of a machine, which is not this one perhaps.
    is_folder = args.backend == "tensorrt" or is_set(args.set)
    manifest = write_repository(
        args.set if is_folder else cached_set(args.set, None),
        args.output,
        backend=args.backend,
        tensorrt_version=version,
        images=args.images,
        force=args.force,
    )
    needs = f", for a Triton with TensorRT {manifest.flavour_version}" if args.backend == "tensorrt" else ""
    print(f"{args.output}: sam, sam_encoder, sam_decoder of {args.set}{needs}; {args.output}/README.md says how to start it")
    return 0
