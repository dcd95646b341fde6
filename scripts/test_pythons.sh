#!/usr/bin/env bash
# The torch-free part of the package and its tests on every Python that it supports beside the one of `make install`: an environment
# for each, without torch, as a Jetson has it. Takes an hour on two cores, most of it PyCUDA's build and the host-memory tests.
# Usage: scripts/test_pythons.sh [VERSION ...]      default: 3.10 3.12 3.13, as python3.10 on the PATH or in pyenv
set -eu

cd "$(dirname "$0")/.."
# What the development environment pins has no wheels for all of them.
export TRT_SAM_CONSTRAINTS=/dev/null OMP_NUM_THREADS=1 PYTHONPATH=$PWD
[ $# -gt 0 ] || set -- 3.10 3.12 3.13

# pyenv has a python3.x on the PATH also for versions that are not in use, where it fails.
interpreter() {
    if "python$1" -c "" 2>/dev/null; then
        command -v "python$1"
    else
        ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python 2>/dev/null | tail -1
    fi
}

failed=""
for version; do
    found=$(interpreter "$version")
    [ -n "$found" ] || { echo "test_pythons: there is no Python $version; install it, or name other versions" >&2; exit 1; }
    venv=.venv-$version
    if [ ! -e "$venv/.installed" ] || [ pyproject.toml -nt "$venv/.installed" ]; then
        "$found" -m venv "$venv"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check -e '.[onnx,onnxruntime,image,formats,serve,supervision,bench,rtx,parquet,download]' \
            httpx httpx2 hypothesis mypy pytest pytest-timeout ruff safetensors
        bash scripts/install_gpu_fixtures.sh "$venv/bin/python"
        touch "$venv/.installed"
    fi
    "$venv/bin/python" -m pytest -p tests.fixtures.without_torch -m "not slow and not gpu" -q tests/unit || failed="$failed $version"
done
[ -z "$failed" ] || { echo "test_pythons: failed on$failed" >&2; exit 1; }
