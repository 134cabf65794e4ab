#!/usr/bin/env bash
# Builds the simulator into OUT: libcuda.so.1, libcublas.so, libcudart.so, and a bin/ with the nvcc stand-in.
# usage: build.sh OUT PYTHON    PYTHON: an interpreter that has PyCUDA installed (and scikit-cuda, for the libcublas)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=$2
cuda=$(cd "${CUDA_HOME:-/usr/local/cuda}" && pwd)
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])')
flags=(-O2 -g1 -std=c++17 -fPIC -Wall -Wextra -I"$cuda/include" -I"$here/src")

mkdir -p "$out/obj" "$out/bin" "$out/include" "$out/ptx"
cp "$here"/include/*.h "$here/src/device_abi.h" "$out/include/"
cp "$here"/ptx/*.py "$out/ptx/"
ln -sfn "$cuda" "$out/cuda"  # where bin/nvcc finds the headers
cp "$here/bin/nvcc" "$out/bin/nvcc"
# a driver compiles PTX whatever the PATH is
sed "1s|.*|#!$("$python" -c 'import sys; print(sys.executable)') -IS|" "$here/bin/ptx" > "$out/bin/ptx"
chmod +x "$out/bin/nvcc" "$out/bin/ptx"

g++ "${flags[@]}" -fvisibility=hidden -c "$here/src/device_runtime.cpp" -o "$out/include/device_runtime.o"
objects=()
for source in "$here"/src/{api_*,barriers,checks,control,execute,memory,modules,ptx,streams}.cpp; do
  name=$(basename "$source" .cpp)
  g++ "${flags[@]}" -U_FORTIFY_SOURCE -fvisibility=hidden -c "$source" -o "$out/obj/$name.o"
  objects+=("$out/obj/$name.o")
done

# stubs NAMES CODE OBJECTS...: C code for each name in the file that no object defines; all of them answer CODE
stubs() {
  comm -13 <(nm "${@:3}" | awk '$2 == "T" {print $3}' | sort -u) <(sort -u "$1") | sed "s/.*/int &(void) { return $2; }/"
}
# library NAME OBJECTS...: links OUT/NAME with that soname, and the stubs
library() {
  gcc -fPIC -c "$out/obj/$1.stubs.c" -o "$out/obj/$1.stubs.o"
  g++ -shared -Wl,-z,defs -Wl,-soname,"$1" -Wl,-rpath,'$ORIGIN' -o "$out/$1" "${@:2}" "$out/obj/$1.stubs.o"
}

# what PyCUDA links to and is not here answers CUDA_ERROR_NOT_SUPPORTED
nm -D --undefined-only "$site"/pycuda/_driver*.so | awk '$2 ~ /^cu/ {print $2}' > "$out/obj/names"
stubs "$out/obj/names" 801 "${objects[@]}" > "$out/obj/libcuda.so.1.stubs.c"
library libcuda.so.1 "${objects[@]}" -ldl -pthread
# scikit-cuda asks for libcuda.so: a library of that name which only leads to the other
: > "$out/obj/libcuda.so.stubs.c"
library libcuda.so -Wl,--no-as-needed "$out/libcuda.so.1"

# scikit-cuda looks names up when it is imported; those that are not here answer not supported
for name in cublas cudart; do
  g++ "${flags[@]}" -fvisibility=hidden -c "$here/src/$name.cpp" -o "$out/obj/$name.o"
  { grep -ohE "_lib$name\.\w+" "$site/skcuda/$name.py" 2> /dev/null || true; } | sed 's/.*\.//' > "$out/obj/names"
  stubs "$out/obj/names" "$([ $name = cublas ] && echo 15 || echo 801)" "$out/obj/$name.o" > "$out/obj/lib$name.so.stubs.c"
  library "lib$name.so" "$out/obj/$name.o" "$out/libcuda.so.1"
done
