#!/usr/bin/env bash
# The tests for a CUDA device and the benchmark, in at most nine minutes, on a machine that needs no network.
#
#   tests/gpu/run.sh prepare FOLDER [PYTHON [PLATFORM…]]   where there is a network: download what such a machine lacks
#   tests/gpu/run.sh [WHEELS [OUT]]                        on that machine: install the wheels aside, test, measure
#
# The machine has Python, torch with CUDA, triton, transformers, pytest, pytest-xdist, pytest-timeout, hypothesis, numpy,
# msgpack, xxhash, ml_dtypes, rich and yaml. PYTHON is its version (3.12), PLATFORM the tags of its wheels. Nothing is
# installed into its environment; the compiled modules are built in the checkout, where there is a C compiler. OUT (out/gpu)
# gets build.txt, tests.txt, benchmark.md and gpu.json. The status is that of the tests or, when they pass, of the benchmark.
#
# In the environment: LIMIT, TEST_LIMIT and BUDGET, seconds of all, of the tests and of the benchmark (530, 290, 170);
# PROCESSES that run tests (8); TESTS, which ones; INTERPRETER (python3); PEER, a folder with SGLang's package, unpacked from
# its wheel; CPU=1 tries the same on the CPU, as far as it goes.
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

run() {
  local wheels=${1:-} out=${2:-out/gpu} python=${INTERPRETER:-python3} limit=${LIMIT:-530}
  local tests=(${TESTS:-tests/gpu tests/dumper/capabilities/test_cuda_copies.py})
  SECONDS=0
  mkdir -p "$out" || return 2
  scratch=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" "$wheels"/*.whl || return 2
    export PYTHONPATH=$PWD:$scratch/site${PYTHONPATH#"$PWD"}
  fi
  export OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TORCHINDUCTOR_COMPILE_THREADS=2
  [ -z "${CPU:-}" ] || export TESTS_GPU_ON_CPU=1
  timeout -k 5 90 "$python" setup.py build_ext --inplace >"$out/build.txt" 2>&1 ||
    echo "the compiled modules were not built: $out/build.txt"
  setsid timeout -k 5 "${TEST_LIMIT:-290}" "$python" -m pytest "${tests[@]}" -n "${PROCESSES:-8}" -q \
    --timeout 200 --show-capture=no --tb=short --durations=10 --basetemp "$scratch/t" \
    -p no:cacheprovider -W ignore > >(grep --line-buffered -v '^DEBUG' | tee "$out/tests.txt") 2>&1 &
  local group=$! failed=0
  wait "$group" || failed=$?
  kill -KILL -- "-$group" 2>/dev/null # workers that were cut off would be measured as well
  case $failed in 124 | 137) echo "the tests were cut off after ${TEST_LIMIT:-290} s" ;; esac
  # No part of the benchmark begins after its budget; the last one may take some time more.
  local left=$((limit - SECONDS)) budget=${BUDGET:-170} measured=0
  [ "$budget" -le $((left - 40)) ] || budget=$((left - 40))
  timeout -k 5 "$left" "$python" -m benchmarks.gpu --budget "$budget" --out "$out" \
    ${PEER:+--peer "$PEER"} ${CPU:+--cpu} >"$out/benchmark.md" || measured=$?
  cat "$out/benchmark.md"
  echo "$SECONDS s in all. Status of the tests: $failed, of the benchmark: $measured"
  return $((failed ? failed : measured))
}

cd "$(dirname "$0")/../.." || exit 2
case ${1:-} in
  prepare) shift && prepare "$@" ;;
  *) run "$@" ;;
esac
