#!/usr/bin/env bash
# The tests for a CUDA device and the benchmark, in at most nine minutes, on a machine that needs no network.
#
#   tests/gpu/run.sh prepare FOLDER [PYTHON [PLATFORM…]]   where there is a network: download what such a machine lacks
#   tests/gpu/run.sh [WHEELS [OUT]]                        on that machine: install the wheels aside, test, measure
#
# The machine has Python, torch with CUDA, triton, transformers, pytest, pytest-xdist, pytest-timeout, hypothesis, numpy,
# msgpack, xxhash, ml_dtypes, rich and yaml. PYTHON is its version (3.12), PLATFORM the tags of its wheels. Nothing is
# installed into its environment. TEST_LIMIT and BUDGET are seconds of the tests and of the benchmark (290, 170),
# PROCESSES says how many run tests (8). OUT (out/gpu) gets tests.txt, benchmark.md and gpu.json.
set -uo pipefail

packages=(libcst pydantic pydantic-core annotated-types typing-inspection typing-extensions msgspec google-re2)

prepare() {
  local folder=$1 version=${2:-3.12}
  shift $(($# < 2 ? $# : 2))
  local tags=()
  for tag in "${@:-manylinux_2_28_x86_64}"; do tags+=(--platform "$tag"); done
  for tag in manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    [ $# -gt 0 ] || tags+=(--platform "$tag")
  done
  # pydantic names the one release of its core that fits, so the two are resolved together.
  python3 -m pip download --quiet --only-binary=:all: --python-version "$version" --implementation cp \
    "${tags[@]}" --dest "$folder" "${packages[@]}" pyyaml
}

tests=(tests/gpu tests/dumper/capabilities/test_cuda_copies.py)

run() {
  local wheels=${1:-} out=${2:-out/gpu} python=${PYTHON:-python3} site
  mkdir -p "$out"
  if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || return 2
    export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
  else
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  fi
  export OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TORCHINDUCTOR_COMPILE_THREADS=2
  setsid timeout "${TEST_LIMIT:-290}" "$python" -m pytest "${tests[@]}" -n "${PROCESSES:-8}" -q \
    --timeout 200 --show-capture=no --tb=short --durations=10 --basetemp "$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)/t" \
    -p no:cacheprovider -W ignore > >(grep --line-buffered -v '^DEBUG' | tee "$out/tests.txt") 2>&1 &
  local group=$! failed=0
  wait "$group" || failed=$?
  kill -KILL -- "-$group" 2>/dev/null # workers that were cut off would be measured as well
  timeout 230 "$python" -m benchmarks.gpu --budget "${BUDGET:-170}" --out "$out" ${PEER:+--peer "$PEER"} | tee "$out/benchmark.md"
  return "$failed"
}

cd "$(dirname "$0")/../.." || exit 2
case ${1:-} in
  prepare) shift && prepare "$@" ;;
  *) run "$@" ;;
esac
