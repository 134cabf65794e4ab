#!/usr/bin/env bash
# Checks and measures everything that needs a real GPU: one command, offline, in less than eight minutes. The most important
# steps come first, because a time limit cuts off the last ones:
#  1. doctor, plain kernels: the kernels load and give the right numbers
#  2. speed: GB/s of an update, a copy and PyTorch's optimizers at 1e3 to 1e9 float32 elements; the cost of a table of one row
#     at 1,000 elements; registers and speed of the plain kernel and of the kernel with options, for each dtype
#  3. dtypes: update() with each data type of the state, 8-bit state included
#  4. graph and shared memory: updates captured in CUDA graphs in four ways; arrays of other libraries
#  5. tensors of PyTorch: numbers, streams, GradScaler, graphs, timings
#  6. benchmark: update() and other implementations; memory
#  7. test suite, quickstart, train_digits: on CUDA
#  8. racecheck, memcheck of options and statistics, memcheck, initcheck: compute-sanitizer
#  9. compile check: registers and spills that nvcc reports, and the shipped PTX
# usage: tools/gpu_check.sh [--dry-run]
# Needs python3 (or PYTHON) with PyCUDA, NumPy, h5py, pytest and hypothesis. On an offline machine, first run
#   source DIR/setup.sh
# with a folder DIR that tools/pack_for_gpu.sh has filled. The CPU kernels are compiled again, which needs g++ and setuptools.
# Writes gpu-<device>-<date>.md, .json, -dtypes.json and -logs.tar.gz into ${OUT:-benchmarks/results}. The exit status is 0
# if no step failed.
# --dry-run: runs everything on the simulator in CUSIM_DIR, with tiny sizes, and writes into ${OUT:-a temporary folder}. This
# shows that the steps run, but nothing about a GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
limit=${GPU_CHECK_SECONDS:-460} # for all steps; each step gets at most the time that is left
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
mkdir "$work/logs"
dry='' epochs=10 kept=benchmarks/results cuda=(--require-gpu) quick=() rehearse=() dry_run=() few=() tests=(tests)
case ${1:-} in
  --dry-run)
    dry=1 epochs=1 kept='a temporary folder'
    simulator=${CUSIM_DIR:?--dry-run needs CUSIM_DIR, the folder that tests/cudasim/build.sh filled}
    cuda=(--cuda=sim) quick=(--quick) rehearse=(--rehearse) dry_run=(--dry-run)
    few=(-k "bits or entry or ptx or side_by_side")
    tests=(tests/optimizer/test_{setup,update,rates,hook_calls,subclasses,nodeinfo,variable}.py -k pycuda)
    out=${OUT:-$work}
    ;;
  '') out=${OUT:-benchmarks/results} ;;
  *) echo "usage: tools/gpu_check.sh [--dry-run]" >&2; exit 2 ;;
esac
mkdir -p "$out"
out=$(cd "$out" && pwd)

# runs a command with the GPU's libraries, or with the simulator's in a dry run; pytest loads the simulator itself
on_gpu() {
  if [ -n "$dry" ]; then
    env LD_PRELOAD="$simulator/libcuda.so.1" LD_LIBRARY_PATH="$simulator" PATH="$simulator/bin:$PATH" \
      PYCUDA_CACHE_DIR="$work/pycuda" "$@"
  else
    "$@"
  fi
}

results=() failed=0
tell() { results+=("$1"); echo "$1"; }
# step NAME SECONDS COMMAND...: runs a command with its own log; if it fails, the next steps still run
step() {
  local name=$1 most=$2 start=$SECONDS status log=$work/logs/${1// /_}.log
  shift 2
  local left=$((limit - SECONDS))
  if [ "$left" -lt 5 ]; then
    failed=$((failed + 1))
    tell "FAIL $name: no time was left for it"
    return
  fi
  { printf '$'; printf ' %q' "$@"; echo; } > "$log"
  # in a new process group, so that the time limit ends child processes too
  timeout --kill-after=5 $((most < left ? most : left)) bash -c '"$@"' step "$@" >> "$log" 2>&1
  status=$?
  if [ "$status" -eq 0 ]; then
    tell "PASS $name ($((SECONDS - start)) s)"
  else
    failed=$((failed + 1))
    [ "$status" -eq 124 ] && status="time limit"
    tell "FAIL $name (status $status, $((SECONDS - start)) s)"
    tail -n 15 "$log" | sed 's/^/     | /'
  fi
}
leave_out() { tell "LEFT OUT $1: $2"; }
export -f on_gpu
export dry work simulator=${simulator:-}

versions() {
  "$python" --version || return 1
  on_gpu "$python" - <<'P'
import importlib.metadata as m
for name in ("puzzlelib_rmsprop", "numpy", "h5py", "pycuda", "scikit-cuda", "setuptools", "pytest", "hypothesis", "torch",
             "cupy-cuda13x", "cupy-cuda12x", "cuda-bindings", "scikit-learn", "ml_dtypes"):
    try:
        print(name, m.version(name))
    except m.PackageNotFoundError:
        print(name, "not installed")
import pycuda.driver as d
d.init()
print("device", d.Device(0).name(), "driver for CUDA", d.get_driver_version())
P
  local status=$?
  command -v nvidia-smi > /dev/null && nvidia-smi
  command -v nvcc > /dev/null && nvcc --version
  return $status
}
export -f versions
export python

# the tests read the version from the package's metadata, which needs an installed package or its egg-info
if ! "$python" -c 'import importlib.metadata as m; m.version("puzzlelib_rmsprop")' 2> /dev/null; then
  "$python" setup.py -q egg_info --egg-base "$work" > "$work/logs/egg_info.log" 2>&1
  export PYTHONPATH=$PYTHONPATH:$work
fi

# the GPU's results are compared with the compiled CPU kernels, or with NumPy's if they cannot be compiled
built() { "$python" -c 'from puzzlelib_rmsprop.kernels.cpu import library; assert library is not None' 2> /dev/null; }
if [ -z "$dry" ]; then "$python" setup.py -q build_ext --inplace > "$work/logs/build_ext.log" 2>&1; fi
built || tell "LEFT OUT the compiled CPU kernels: they were not compiled (logs/build_ext.log); NumPy is used instead"

slug=$(on_gpu "$python" -c '
import re, pycuda.driver as d
d.init()
print(re.sub(r"[^a-z0-9]+", "-", d.Device(0).name().lower()).strip("-"))' 2> "$work/logs/device.log") || slug=none
stem=${dry:+dry-run-}gpu-$slug-$(date +%F)
echo "$stem${dry:+, dry run on the simulator: it shows nothing about a GPU}"

step versions 30 versions
step doctor 60 on_gpu "$python" -m puzzlelib_rmsprop doctor --require-gpu
step "plain kernels" 60 "$python" -m pytest -q -x -p no:cacheprovider "${cuda[@]}" tests/cuda/test_{loading,rule,numbers}.py \
  "${few[@]}"
step speed 100 on_gpu "$python" tools/speed_check.py "${quick[@]}"
step dtypes 60 on_gpu "$python" -m benchmarks --device cuda "${quick[@]}" --suite dtype --peers foreach \
  --json "$out/$stem-dtypes.json"
step "graph and shared memory" 60 on_gpu "$python" tools/graph_check.py "${rehearse[@]}"
# a dry run uses stand-ins for PyTorch's CUDA tensors
if ! "$python" -c 'import torch' 2> /dev/null; then
  leave_out "tensors of PyTorch" "PyTorch is not installed"
elif [ -z "$dry" ] && ! "$python" -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null; then
  leave_out "tensors of PyTorch" "this PyTorch finds no GPU"
else
  step "tensors of PyTorch" 120 on_gpu "$python" tools/torch_check.py "${dry_run[@]}"
fi
step benchmark 100 on_gpu "$python" -m benchmarks --device cuda "${quick[@]}" --suite main size memory \
  --peers foreach --json "$out/$stem.json" --markdown "$out/$stem.md"
if ! "$python" -c 'import sklearn, tqdm, matplotlib' 2> /dev/null; then
  tests+=(--ignore=tests/project/test_examples.py)
  leave_out "tests of the examples" "scikit-learn, tqdm or matplotlib is not installed"
fi
# tests that do not use a GPU, or need MPI, are left out
for part in convert distributed cuda/simulator {project/test_{benchmarks,tools},stress/test_{crash,fuzz_checkpoint},tools/test_inspect}.py; do
  tests+=("--ignore=tests/$part")
done
step "test suite" 200 "$python" -m pytest -q -p no:cacheprovider "${cuda[@]}" "${tests[@]}"

# the examples on CUDA
on_cuda='from puzzlelib_rmsprop import Config, gpuarray; Config.backend = Config.Backend.cuda; gpuarray.zeros(3)'
if on_gpu "$python" -c "$on_cuda" > "$work/logs/backend.log" 2>&1; then
  step quickstart 60 on_gpu "$python" -c "$on_cuda; import runpy; runpy.run_path('examples/quickstart.py')"
else
  leave_out quickstart "gpuarray makes no arrays on CUDA: $(tail -n 1 "$work/logs/backend.log")"
fi
if ! "$python" -c 'import sklearn, tqdm' 2> /dev/null; then
  leave_out train_digits "scikit-learn or tqdm is not installed"
elif ! "$python" examples/train_digits.py --help | grep -q -e --device; then
  leave_out train_digits "it has no option --device"
else
  step train_digits 90 on_gpu "$python" examples/train_digits.py --device cuda --epochs "$epochs"
fi

# some of the kernel tests under compute-sanitizer, where each launch is many times slower
watch() { # NAME TOOL SECONDS FILTER FILE...
  if [ -n "$dry" ] || ! command -v compute-sanitizer > /dev/null; then
    leave_out "$1" "compute-sanitizer is not here"
    return
  fi
  local options=()
  # some tests make API calls fail on purpose
  [ "$2" = memcheck ] && options=(--report-api-errors no)
  step "$1" "$3" compute-sanitizer --tool "$2" "${options[@]}" --error-exitcode 9 "$python" -m pytest -q -x -p no:cacheprovider \
    "${cuda[@]}" "${@:5}" -k "($4) and not planted"
}
plain="${SANITIZE:-(pycuda or cuda) and (float or many or offset or rates or stream or step)}"
extended=(tests/cuda/test_{extended,operations,random_rounding,statistics,streams}.py)
rule=(tests/cuda/test_{rule,optimizer,streams,capture}.py)
# only kernels other than the plain update use shared memory, where races are possible
watch racecheck racecheck 60 "statistics or norm or many_rows or operations_in or skipped" "${extended[@]}"
watch "memcheck of options and statistics" memcheck 60 "every_alignment or statistics or norm or skipped" "${extended[@]}"
watch memcheck memcheck 90 "$plain" "${rule[@]}" tests/cuda/test_numbers.py \
  tests/optimizer/test_{setup,update,rates,hook_calls,subclasses,nodeinfo,variable}.py
watch initcheck initcheck 60 "$plain" "${rule[@]}"

if [ -n "$dry" ]; then
  leave_out "compile check" "it needs no GPU: run tools/check_kernels.py"
elif nvcc --version 2> /dev/null | grep -q "Cuda compilation tools"; then
  step "compile check" 150 "$python" tools/check_kernels.py
else
  leave_out "compile check" "nvcc is not installed"
fi

{
  printf '\n## Kernels\n\n'
  sed 1d "$work/logs/speed.log" # the command
  printf '\n## Dtypes\n\n'
  sed 1d "$work/logs/dtypes.log"
  printf '\n## Checks\n\n'
  printf -- '- %s\n' "${results[@]}"
} >> "$out/$stem.md"
tar -czf "$out/$stem-logs.tar.gz" -C "$work" logs
echo
sed '/^## Checks/,$d' "$out/$stem.md"
printf '%s\n' "${results[@]}"
echo "$failed failed, ${SECONDS} s; $stem.md, $stem.json and $stem-logs.tar.gz are in ${OUT:-$kept}"
[ -n "$dry" ] && [ "$out" = "$work" ] || rm -rf "$work"
[ "$failed" -eq 0 ]
