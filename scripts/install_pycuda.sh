#!/usr/bin/env bash
# PyCUDA for the virtual environment of PYTHON, on a machine with an NVIDIA driver, a C++ compiler and no CUDA toolkit.
#
# PyCUDA comes as source, and what it is compiled against decides which drivers it loads with: with headers of CUDA 12.8 or
# newer it needs driver R570. So it is compiled here against those of CUDA 12.4, from NVIDIA's wheels, and loads from R525 on.
# Run this before `pip install 'trt-sam[cuda]'`, which would build it against whatever CUDA the machine has.
# Usage: scripts/install_pycuda.sh PYTHON [FOLDER_WITH_libcuda.so]
set -eu

python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
folder=${2:-}
cxx=${CXX:-g++}
# The same files come out everywhere: no CUDA toolkit or setting of this machine takes part.
unset CUDA_ROOT CUDA_PATH CUDA_HOME CUDA_INC_DIR

pycuda_version=2026.1
headers_wheels="nvidia-cuda-runtime-cu12==12.4.127 nvidia-cuda-profiler-api-cu12==12.9.79"
build_wheels="setuptools>=77 wheel numpy>=1.24"

say() { echo "install_pycuda: $*" >&2; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# Whether the PyCUDA that is there was compiled against CUDA 12.4 or older; no driver is asked.
fits() {
    local library
    library=$("$python" -c 'import importlib.util as u, glob, os
found = u.find_spec("pycuda")
print(*glob.glob(os.path.join(os.path.dirname(found.origin), "_driver*.so")) if found else ())' 2>/dev/null) || return 1
    [ -n "$library" ] && ! grep -q -e cuCtxCreate_v4 -e cuEventElapsedTime_v2 "$library"
}

if fits; then exit 0; fi
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || {
    say "no Python.h for $python; install its headers, Ubuntu: apt-get install python3-dev"
    exit 1
}
command -v "$cxx" >/dev/null || { say "no C++ compiler ($cxx); install one, Ubuntu: apt-get install g++"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$folder" ]; then
    # To link against; drivers bring libcuda.so.1, and the name without a number only with some packages.
    driver=$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 / && /64/ { print $NF; exit }')
    [ -n "$driver" ] || { say "no NVIDIA driver (libcuda.so.1 was not found); install the driver before"; exit 1; }
    folder=$work/driver
    mkdir "$folder"
    ln -s "$driver" "$folder/libcuda.so"
fi
# shellcheck disable=SC2086
pip install -q $build_wheels
# shellcheck disable=SC2086
pip install -q --no-deps --target "$work/headers" $headers_wheels
pip download -q --no-deps --no-binary pycuda --no-build-isolation -d "$work" "pycuda==$pycuda_version"
tar -xzf "$work/pycuda-$pycuda_version.tar.gz" -C "$work"
include=$(dirname "$(find "$work/headers" -name cuda.h | head -n 1)")
profiler=$(dirname "$(find "$work/headers" -name cudaProfiler.h | head -n 1)")
say "building PyCUDA $pycuda_version from its source against CUDA 12.4, about two minutes"
(
    cd "$work/pycuda-$pycuda_version"
    "$python" configure.py --cuda-root="$work/headers" --cuda-inc-dir="$include,$profiler" --cudadrv-lib-dir="$folder" \
        --no-cuda-enable-curand
    pip install -q --no-build-isolation --force-reinstall --no-deps .
    pip install -q "pycuda==$pycuda_version" # what it needs itself
) >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; say "PyCUDA could not be built, see above"; exit 1; }
