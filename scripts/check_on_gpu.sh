#!/usr/bin/env bash
# Check everything that needs a GPU, on a machine with one NVIDIA GPU and no internet: two calls of at most
# ten minutes each, which end in one table, $OUT/table.md.
#
#     bash scripts/check_on_gpu.sh wheels wheels    # with internet: fetch what the other machine lacks
#     bash scripts/check_on_gpu.sh flash-attn-4 wheels    # optional, 100 MB more: a faster kernel
#     WHEELS=wheels bash scripts/check_on_gpu.sh first    # on the machine with the GPU
#     WHEELS=wheels bash scripts/check_on_gpu.sh second
#     DRY=1 bash scripts/check_on_gpu.sh first second    # tries the check itself, on a CPU
#
# Folders are those of the repository. Python with torch, triton and transformers is expected there; the
# table names packages that are still missing, and `wheels FOLDER NAME...` fetches them as well. In place
# of first and second, names of sections: `python scripts/check_on_gpu.py --help`. OUT=check_on_gpu is the
# folder for results; where the second call runs on a fresh machine, put that of the first one back
# before, for one table of both.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}  # of the machine with the GPU

# What does not come with torch and transformers. Versions are those of constraints.txt.
REQUIRED="annotated-types dill datasets einops hjson hydra-core hypothesis iniconfig msgpack multiprocess
    omegaconf pluggy psutil py-cpuinfo pydantic pydantic_core pytest pytest-timeout sortedcontainers
    typing-inspection zstandard"
SOURCE_ONLY="antlr4-python3-runtime deepspeed"
# Without nvidia-cutlass-dsl-libs-cu12, which flash-attn-4 asks for and CUDA 13 does not use.
FLASH_ATTN_4="flash-attn-4>=4.0.0b36 nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base
    nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-cu13 quack-kernels apache-tvm-ffi
    torch-c-dlpack-ext"

download() {  # FOLDER, names of packages and options of pip
    local folder=$1 platforms=()
    shift
    for number in 2_28 2_24 2_17; do platforms+=(--platform "manylinux_${number}_x86_64"); done
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version "$PYTHON_VERSION" "${platforms[@]}" \
        --platform manylinux2014_x86_64 --dest "$folder" "$@"
}

build() {  # FOLDER, names of packages that have no wheel
    local folder=$1
    shift
    DS_BUILD_OPS=0 "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps \
        --constraint constraints.txt --wheel-dir "$folder" "$@"
}

case ${1:-} in
wheels)
    # Names are split into words.
    # shellcheck disable=SC2086
    download "${2:?name a folder}" --constraint constraints.txt $REQUIRED "${@:3}"
    # shellcheck disable=SC2086
    build "$2" $SOURCE_ONLY
    du -ch "$2"/*.whl
    exit
    ;;
flash-attn-4)
    # shellcheck disable=SC2086
    download "${2:?name a folder}" $FLASH_ATTN_4
    du -ch "$2"/*.whl
    exit
    ;;
"")
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

OUT=${OUT:-check_on_gpu}
mkdir -p "$OUT"
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if [ -n "${WHEELS:-}" ]; then
    SITE=$(mktemp -d)
    trap 'rm -rf "$SITE"' EXIT
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --target "$SITE" "$WHEELS"/*.whl
    PYTHONPATH=$PYTHONPATH:$SITE
fi
"$PYTHON" scripts/check_on_gpu.py "$@" ${DRY:+--dry} --out "$OUT" 2>&1 | tee -a "$OUT/log.txt"
