#!/usr/bin/env bash
# Builds the simulator into OUT: libcuda.so.1, libcublas.so, libcudart.so, and a bin/ with the nvcc stand-in.
# usage: build.sh OUT PYTHON    PYTHON: an interpreter that has PyCUDA installed (and scikit-cuda, for the libcublas)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=$2
cuda=${CUDA_HOME:-/usr/local/cuda}
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])')
flags=(-O2 -g1 -std=c++17 -fPIC -Wall -Wextra -I"$cuda/include" -I"$here/src")

mkdir -p "$out/obj" "$out/bin" "$out/include"
cp "$here/include/cusim.h" "$here/src/device_abi.h" "$out/include/"
cp "$here/bin/nvcc" "$out/bin/nvcc"
chmod +x "$out/bin/nvcc"

g++ "${flags[@]}" -fvisibility=hidden -c "$here/src/device_runtime.cpp" -o "$out/include/device_runtime.o"
objects=()
for name in control memory streams execute modules driver; do
  g++ "${flags[@]}" -U_FORTIFY_SOURCE -fvisibility=hidden -c "$here/src/$name.cpp" -o "$out/obj/$name.o"
  objects+=("$out/obj/$name.o")
done

# Every call that PyCUDA links to and that is not here answers CUDA_ERROR_NOT_SUPPORTED (801).
comm -13 <(nm "${objects[@]}" | awk '$2 == "T" {print $3}' | sort -u) \
         <(nm -D --undefined-only "$site"/pycuda/_driver*.so | awk '$2 ~ /^cu/ {print $2}' | sort -u) \
  | sed 's/.*/int &(void) { return 801; }/' > "$out/obj/unsupported.c"
gcc -fPIC -c "$out/obj/unsupported.c" -o "$out/obj/unsupported.o"
g++ -shared -Wl,-soname,libcuda.so.1 -o "$out/libcuda.so.1" "${objects[@]}" "$out/obj/unsupported.o" -ldl -pthread
