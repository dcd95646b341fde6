#!/usr/bin/env bash
# What lets the GPU code be tested without a GPU, put into the virtual environment of PYTHON:
#   PyCUDA from its source, Polygraphy and cuda-bindings;
#   gpu-fixtures/libcuda.so.1   the host-memory CUDA driver of tests/fixtures/hostcuda (PyCUDA also links against it);
#   trt-bindings/10.3, 10, 11   the real TensorRT bindings over stub libraries, to check that what we call exists; 10.3, which
#                               JetPack 6 has, where it has a wheel for this Python (3.8 to 3.12).
# All but Polygraphy and cuda-bindings needs a C++ compiler. What cannot be had is named in one line; its tests are skipped.
# Usage: scripts/install_gpu_fixtures.sh PYTHON
set -eu

repo=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
prefix=$("$python" -c 'import sys; print(sys.prefix)')
fixtures=$prefix/gpu-fixtures
bindings=$prefix/trt-bindings
# Other versions of Python have other versions of numpy: scripts/test_pythons.sh takes what fits.
constraints=${TRT_SAM_CONSTRAINTS-$repo/constraints.txt}
cxx=${CXX:-g++}
# Builds and pip must not see a CUDA toolkit or settings of this machine: the same files come out everywhere.
unset CUDA_ROOT CUDA_PATH CUDA_HOME CUDA_INC_DIR

tensorrt_versions="10:cu13:10.16.1.11 11:cu13:11.4.0.106"
tensorrt_of_jetpack_6="10.3:cu12:10.3.0"

pip() { "$python" -m pip --disable-pip-version-check "$@"; }
say() { echo "install_gpu_fixtures: $*" >&2; }
has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }

install_wheels() {
    if has polygraphy && "$python" -c 'import cuda.bindings' 2>/dev/null; then return; fi
    pip install -q -c "$constraints" polygraphy cuda-bindings
}

build_driver() {
    local sources=$repo/tests/fixtures/hostcuda
    if [ -e "$fixtures/libcuda.so.1" ] && [ -z "$(find "$sources" -newer "$fixtures/libcuda.so.1" \( -name '*.cpp' -o -name '*.h' -o -name '*.inc' \))" ]; then
        return
    fi
    mkdir -p "$fixtures"
    "$cxx" -std=gnu++17 -O2 -Wall -fPIC -shared -fvisibility=hidden -Wl,-soname,libcuda.so.1 \
        -o "$fixtures/libcuda.so.new" "$sources"/*.cpp -ldl -pthread
    mv "$fixtures/libcuda.so.new" "$fixtures/libcuda.so.1"
    ln -sf libcuda.so.1 "$fixtures/libcuda.so"
}

build_pycuda() {
    pip install -q -c "$constraints" setuptools wheel numpy
    PIP_CONSTRAINT="$constraints" bash "$repo/scripts/install_pycuda.sh" "$python" "$fixtures"
}

# The bindings need three libraries by name and nine functions: stubs that answer "nothing" let them load. RPATH is $ORIGIN.
build_bindings() {
    local each cuda version major folder stub
    for each in "$@"; do
        IFS=: read -r folder cuda version <<<"$each"
        major=${version%%.*}
        folder=$bindings/$folder
        [ -e "$folder/$version.complete" ] && continue
        rm -rf "$folder"
        pip install -q --no-deps --target "$folder" "tensorrt_${cuda}_bindings==$version"
        stub=$folder/stub.cpp
        {
            for function in createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL \
                createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getPluginRegistry; do
                echo "extern \"C\" void* $function() { return nullptr; }"
            done
            echo 'extern "C" int getNvOnnxParserVersion() { return 0; }'
            echo 'extern "C" bool initLibNvInferPlugins() { return true; }'
        } >"$stub"
        for library in nvinfer nvinfer_plugin nvonnxparser; do
            "$cxx" -shared -fPIC -Wl,-soname,lib$library.so."$major" \
                -o "$folder/tensorrt_bindings/lib$library.so.$major" "$stub"
        done
        touch "$folder/$version.complete"
    done
}

# `set -e` does not reach into a function called before ||, so each runs in a shell of its own.
try() {
    local what=$1 skipped=$2 status=0
    shift 2
    set +e
    (set -e; "$what" "$@")
    status=$?
    set -e
    [ $status -eq 0 ] || say "$what failed; skipped for want of it: $skipped"
}

try install_wheels "compare and the CUDA graph tests"
if ! command -v "$cxx" >/dev/null; then
    say "no C++ compiler ($cxx): PyCUDA, the host-memory CUDA driver and the TensorRT stubs are not built, their tests are skipped"
    exit 0
fi
try build_driver "the tests of cuda.py and runner.py"
try build_pycuda "the tests of cuda.py and runner.py, and running engines"
# shellcheck disable=SC2086 # words
try build_bindings "the checks against TensorRT 10 and 11" $tensorrt_versions
try build_bindings "the checks against TensorRT 10.3" $tensorrt_of_jetpack_6
