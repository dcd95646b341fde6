"""Start the Triton that nvidia-pytriton 0.7.0 brings along, without a container and without a GPU, on a model repository.

    python3 -m venv .venv-triton && .venv-triton/bin/pip install -r tests/services/requirements-triton.txt
    python scripts/triton_server.py model_repository --python .venv-triton/bin/python --http-port 8000

It is server 2.51.0 with the Python backend alone; its stub wants numpy of 1.x. trt_sam is taken from this checkout. Linux on
x86-64 with glibc 2.35 or later. Runs in the foreground until it is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROBE = (
    "import json, sys, sysconfig; import pytriton; print(json.dumps({'pytriton': pytriton.__path__[0], "
    "'version': '%d.%d' % sys.version_info[:2], 'libraries': sysconfig.get_config_var('LIBDIR')}))"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--python", default=".venv-triton/bin/python", help="of the environment with nvidia-pytriton")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triton-") as folder:
        command, environment = prepared(args.python, args.repository, Path(folder))
        ports = [f"--{name}-port={getattr(args, f'{name}_port')}" for name in ("http", "grpc", "metrics")]
        hosts = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
        # The stub looks for modules in the working directory too: trt_sam need not be installed.
        server = subprocess.Popen([*command, *ports, *hosts], env=environment, cwd=ROOT)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.terminate())
        return server.wait()


def prepared(python: str, repository: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command without ports and its environment; `folder` gets the backend as Triton wants it."""
    try:
        found: dict[str, Any] = json.loads(
            subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True).stdout
        )
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise SystemExit(f"{python} has no nvidia-pytriton ({error}); see the top of {__file__}") from None
    triton = Path(found["pytriton"]) / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(triton / "backends" / "python", backend)
    shutil.copy2(triton / "python_backend_stubs" / found["version"] / "triton_python_backend_stub", backend)
    libraries = [found["libraries"], str(Path(found["pytriton"]).parent / "nvidia_pytriton.libs")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep),
        # The stub embeds Python, ignores PYTHONPATH, and takes the environment whose python is first.
        "PATH": os.pathsep.join([str(Path(python).absolute().parent), os.environ["PATH"]]),
    }
    command = [str(triton / "bin" / "tritonserver"), f"--model-repository={repository.resolve()}"]
    return [*command, f"--backend-directory={backend.parent}"], environment


if __name__ == "__main__":
    sys.exit(main())
