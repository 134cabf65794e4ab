#!/usr/bin/env bash
# Builds a PyCUDA wheel into OUT where there is no GPU, no driver and no cuRAND; about two minutes on one core.
# A wheel for that Python that is already in OUT is kept.
# usage: build_pycuda.sh OUT PYTHON    needs CUDA headers in ${CUDA_HOME:-/usr/local/cuda}
set -euo pipefail
version=2026.1
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=$("$2" -c 'import sys; print(sys.executable)')  # absolute: the build changes folders
cuda=${CUDA_HOME:-/usr/local/cuda}
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
if compgen -G "$out/pycuda-$version-$tag-$tag-*.whl" > /dev/null; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$python" -m pip install -q "setuptools<81" wheel "numpy>=2"
# an empty libcuda satisfies the linker; the stand-in is found at import
echo | gcc -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so -
export PATH="$cuda/bin:$PATH" CUDA_ROOT="$cuda"
export LDFLAGS="-Wl,--no-as-needed ${LDFLAGS:-}"  # an empty library would be left out as not needed
export LIBRARY_PATH="$work:$cuda/lib:$cuda/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}"
"$python" -m pip download -q --no-deps --no-build-isolation --no-binary :all: "pycuda==$version"
tar xf pycuda-*.tar.gz
cd pycuda-*/
"$python" configure.py --cuda-root="$cuda" --no-cuda-enable-curand
"$python" -m pip wheel -q --no-build-isolation --no-deps . -w "$out"
