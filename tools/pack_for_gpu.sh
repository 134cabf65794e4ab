#!/usr/bin/env bash
# Collects in DIR the packages that an offline x86-64 machine with a GPU, Python 3.12, the CUDA toolkit, g++, NumPy, h5py and
# pytest needs for tools/gpu_check.sh: PyCUDA's source and its dependencies, scikit-cuda, hypothesis. On that machine, run
#   source DIR/setup.sh && tools/gpu_check.sh
# usage: tools/pack_for_gpu.sh DIR [more packages as NAME==VERSION, with their dependencies]
#   for the examples, add scikit-learn scipy joblib threadpoolctl
# GPU_PYTHON: the machine's version of Python, 3.12 by default. WITHOUT_TORCH=1: leave out PyTorch (some gigabytes).
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: tools/pack_for_gpu.sh DIR [NAME==VERSION ...]" >&2; exit 2; }
dir=$(mkdir -p "$1" && cd "$1" && pwd)
shift
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
# pip matches these names exactly, so every one that a wheel may have is listed
for glibc in 1 2010 2014 _2_17 _2_24 _2_26 _2_27 _2_28 _2_31 _2_34; do platforms+=(--platform "manylinux${glibc}_x86_64"); done
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
# remove the wheels of an earlier run, so that there is one version of each package
find "$dir" -maxdepth 1 -name '*.whl' ! -name 'pycuda-*' -delete
"${pip[@]}" download -q --no-deps --only-binary=:all: --implementation cp --python-version "${GPU_PYTHON:-3.12}" "${platforms[@]}" \
  -d "$dir" pytools siphash24 mako platformdirs typing-extensions markupsafe scikit-cuda==0.5.3 "setuptools<81" \
  hypothesis sortedcontainers ml_dtypes tqdm "$@"
if [ -z "${WITHOUT_TORCH:-}" ]; then
  # with its dependencies
  echo "setuptools<81" > "$work/constraints"
  "${pip[@]}" download -q --only-binary=:all: --implementation cp --python-version "${GPU_PYTHON:-3.12}" "${platforms[@]}" \
    -c "$work/constraints" -d "$dir" torch
fi
if ! compgen -G "$dir/pycuda-*.tar.gz" > /dev/null; then
  # pip reads the metadata of a source archive, which needs setuptools and NumPy, but no compiler or CUDA
  "${pip[@]}" install -q "setuptools<81" wheel "numpy>=2"
  "${pip[@]}" download -q --no-deps --no-build-isolation --no-binary :all: -d "$dir" pycuda==2026.1
fi

cat > "$dir/setup.sh" <<'S'
# To be sourced on the machine with the GPU: installs the wheels of this folder into a separate folder and adds that to
# PYTHONPATH. Builds PyCUDA if there is no wheel for this Python, and leaves its wheel in ${OUT:-this folder}, so that the next
# machine need not build it.
# Uses PYTHON (python3), CUDA_HOME (the CUDA toolkit), SITE (the folder to install into).
pack_setup() {
  local here python site cuda status
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || return
  python=${PYTHON:-python3}
  site=${SITE:-${TMPDIR:-/tmp}/puzzlelib_rmsprop-site}
  local install=("$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --upgrade --target "$site")
  mkdir -p "$site" || return
  local wheels=() wheel
  for wheel in "$here"/*.whl; do
    case $wheel in */pycuda-*) ;; *) wheels+=("$wheel") ;; esac
  done
  "${install[@]}" "${wheels[@]}" || return
  case :${PYTHONPATH:-}: in *:"$site":*) ;; *) export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} ;; esac
  for wheel in "$here"/pycuda-*.whl; do
    # a wheel for another Python fails here, and PyCUDA is built below
    [ -e "$wheel" ] && "${install[@]}" "$wheel" 2> /dev/null
  done
  if ! "$python" -c 'import pycuda.driver' 2> /dev/null; then
    cuda=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
    (
      set -e
      work=$(mktemp -d)
      trap 'rm -rf "$work"' EXIT
      # the linker needs libcuda.so: the driver's, or the toolkit's stub
      driver=$(ldconfig -p 2> /dev/null | awk '/libcuda\.so\.1/ {print $NF; exit}')
      for file in "$driver" /usr/local/nvidia/lib64/libcuda.so.1 "$cuda"/lib64/stubs/libcuda.so "$cuda"/targets/*/lib/stubs/libcuda.so; do
        if [ -e "$file" ]; then ln -s "$file" "$work/libcuda.so"; break; fi
      done
      cd "$work"
      tar xf "$here"/pycuda-*.tar.gz
      cd pycuda-*/
      export CUDA_ROOT=$cuda PATH=$cuda/bin:$PATH LIBRARY_PATH=$work:$cuda/lib64:$cuda/lib${LIBRARY_PATH:+:$LIBRARY_PATH}
      "$python" configure.py --cuda-root="$cuda" --no-cuda-enable-curand
      "$python" setup.py -q build_ext --parallel "$(nproc)"
      "$python" -m pip wheel -q --no-build-isolation --no-deps --no-index . -w "$work/wheel"
      "${install[@]}" "$work"/wheel/pycuda-*.whl
      # the folder may be read-only
      cp "$work"/wheel/pycuda-*.whl "${OUT:-$here}/" || true
    ) > "$site/build.log" 2>&1
    status=$?
    if [ $status -ne 0 ]; then
      tail -n 40 "$site/build.log"
      echo "building PyCUDA failed"
      return $status
    fi
  fi
  "$python" -c 'import pycuda.driver as d; d.init(); print("PyCUDA", d.get_version(), "on", d.Device(0).name())'
}
pack_setup
S
ls -l "$dir"
