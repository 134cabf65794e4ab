"""Unsupported PTX is refused with its name and line. All PTX that the package ships is supported."""

import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cuda_source
from tests.cuda.simulator.machine import OUT, control, drv
from tests.cuda.simulator.ptx.running import HEADER, kernel, load
from tests.cudasim.ptx.kernel import Kernel
from tests.cudasim.ptx.text import PTXError, parse


def translate(text):
    module = parse(text)
    return [Kernel(module, entry).source() for entry in module.entries]


REFUSED = {
    "frobnicate.b32 %r0, %r1;": "unknown instruction 'frobnicate' in 'frobnicate.b32 %r0, %r1;' of kernel tested",
    "add.rn.ftz.f64 %d0, %d1, %d2;": "unknown modifier .f64",
    "add.rn.ftz.f16 %h0, %h1, %h2;": "unknown modifier .f16",
    "mul.lo.f32 %f0, %f1, %f2;": "unknown modifier .f32",
    "fma.f32 %f0, %f1, %f2, %f3;": r"unknown modifier .f32 (known here: .rn .rz .rm .rp)",
    "add.f32.rn %f0, %f1, %f2;": "unknown modifier .rn",
    "add.s32 %r0, %r1;": "2 operands, not 3",
    "add.s32 %r0, %r1, %q1;": "register %q1 is .b64, read as .s32",
    "add.s32 %r0, %r1, %f1;": "register %f1 is .f32, read as .s32",
    "add.f32 %q0, %f1, %f1;": "register %q0 is .b64, written as .f32",
    "add.f32 %f0, %f1, 1;": "'1' is no .f32",
    "add.s32 %r0, %r1, 0f3F800000;": "'0f3F800000' is no .s32",
    "add.s32 %r0, %r1, unheard;": "'unheard' is no .s32",
    "mov.u32 %r0, %smid;": "'%smid' is no .u32",
    "mov.u32 %r0, tested_0;": "an address of 64 bits in a register of 32",
    "setp.lo.s32 %c0, %r0, %r1;": "unknown comparison .lo.s32",
    "setp.ltu.u32 %c0, %r0, %r1;": "unknown comparison .ltu.u32",
    "setp.xy.u32 %c0, %r0, %r1;": "unknown modifier .xy",
    "selp.f32 %f0, %f1, %f2, %r0;": "register %r0 is .b32, read as .pred",
    "cvt.f32.f64 %f0, %d0;": "a rounding mode is missing",
    "cvt.rn.f64.f32 %d0, %f0;": "unknown modifier .rn",
    "cvt.rn.s32.f32 %r0, %f0;": "a rounding mode to integers is missing",
    "cvt.rni.f32.s32 %f0, %r0;": "a rounding mode is missing",
    "cvt.rn.relu.f16.f32 %h0, %f0;": "unknown modifier .relu",
    "ld.global.v8.u8 {%h0}, [%p0];": "unknown modifier .v8",
    "ld.global.v4.f64 {%d0, %d1, %d2, %d3}, [%p0];": "more than 16 bytes",
    "ld.global.v4.f32 {%f0, %f1}, [%p0];": "no vector of 4",
    "ld.global.f32 %f0, %p0;": "'%p0' is no address",
    "ld.global.f32 %f0, [nowhere];": "unknown name 'nowhere'",
    "ld.global.f64 %f0, [%p0];": "register %f0 is .f32, written as .f64",
    "ld.param.u64 %q0, [tested_0+8];": "offset 8 is outside of 'tested_0', which has 8 bytes",
    "ld.param.u64 %q0, [tested_0+4];": "8 bytes of the 4 that are left",
    "ld.global.u64 %q0, [tested_0];": "a variable of .param accessed as .global",
    "st.param.u64 [tested_0], %q0;": "unknown modifier .param",
    "atom.global.add.f16x2 %r0, [%p0], %r1;": "unknown modifier .f16x2",
    "atom.global.add.noftz.f32 %f0, [%p0], %f1;": "unknown modifier .noftz",
    "red.global.cas.b32 [%p0], %r0, %r1;": "unknown modifier .cas",
    "bar.sync 1;": "barrier 1 is not known here: only 0, of the whole block,",
    "bar.sync 0, 64;": "2 operands, not 1",
    "bar.arrive 0, 64;": "unknown modifier .arrive",
    "shfl.bfly.b32 %r0, %r1, 1, 31;": "unknown modifier .bfly",
    "bra NOWHERE;": "unknown label 'NOWHERE'",
    "brx.idx %r0, nowhere;": "unknown list of targets 'nowhere'",
    "call.uni vprintf, (%r0);": "unknown instruction 'call'",
    "mad.wide.u64 %q0, %q1, %q2, %q3;": "unknown modifier .u64",
    '.pragma "used_bytes_mask 1";': "unknown directive '.pragma \"used_bytes_mask 1\"'",
    ".reg .b8 %z<3>;": "unknown type .b8 of registers",
    ".tex .u64 image;": "not a declaration that is known here: '.tex .u64 image'",
    ".global .u32 inside;": "a variable of .global in a kernel is not known here",
    "add s32 r0": "an instruction that lacks its semicolon",
    "%r0 = 3;": "not an instruction: '%r0 = 3'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_not_known_is_refused_by_name_and_line(line):
    text = HEADER + kernel("tested", f"  add.s32 %r0, %r1, 2;\n{line}\n", 1)
    at = text[: text.index(line)].count("\n") + 1
    with pytest.raises(PTXError) as refused:
        translate(text)
    message = str(refused.value)
    if line != "add s32 r0":
        assert message.startswith(f"line {at}: ")
        assert REFUSED[line] in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: '.version' expected"),
        (".version 8.0\n.target sm_75\n.address_size 32\n", "line 3: '.address_size' expected"),
        (HEADER + ".func helper() { ret; }", "line 4: unknown directive '.func helper() { ret; }'"),
        (HEADER + ".global .texref image;", "unknown type .texref of 'image'"),
        (
            HEADER + ".visible .entry k() .explicitcluster { ret; }",
            "unknown directive before the body of 'k': '.explicitcluster'",
        ),
        (HEADER + ".visible .entry k() { ret;", "the body of 'k' does not end"),
    ],
)
def test_files_that_are_not_known_are_refused(text, message):
    with pytest.raises(PTXError) as refused:
        translate(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "declaration",
    [".extern .global .u32 elsewhere;", ".global .u64 at = generic(other);", ".global .align 8 .u64 at[1] = {other};"],
)
def test_variables_that_are_not_known_are_refused(context, declaration):
    with pytest.raises(drv.Error):
        load(HEADER + declaration + kernel("tested", "", 1))
    assert "PTX: line 4: " in control.clear_fault()


def test_a_refusal_is_told_by_the_driver(context):
    text = HEADER + kernel("tested", "\n\nfrobnicate.b32 %r0;", 1)
    with pytest.raises(drv.Error, match="error 218"):
        load(text)
    assert control.clear_fault().startswith("PTX: line ")
    with control.ptx(False), pytest.raises(drv.Error, match="device kernel image is invalid"):
        drv.module_from_buffer(text.encode() + b"\0")


@pytest.mark.parametrize("file", sorted(path.stem for path in cuda_source._FOLDER.glob("*.cu")))
def test_the_shipped_text_is_known(file):
    text = cuda_source.shipped_ptx(file)[0].decode()
    assert len(translate(text)) == text.count(".entry ")


PROBE = r"""
#include <cstdint>
extern "C" __global__ void probe(int8_t *a, uint32_t *m, float *f, double *d, int n)
{
    extern __shared__ float sums[];
    int kept[8], t = threadIdx.x;
    for (int i = 0; i < 8; i++)
        kept[i] = m[i];
    const char4 c = reinterpret_cast<char4 *>(a)[t];
    float s = c.x + c.y * 2.f + c.z * 3.f - c.w;
    for (int k = 16; k; k >>= 1)
        s = fmaxf(s, __shfl_xor_sync(~0u, s, k));
    sums[t] = s;
    __syncthreads();
    switch (n) {
    case 0: s += 1; break;
    case 1: s *= 3; break;
    case 2: s -= sums[t ^ 1]; break;
    case 3: s = sqrtf(s); break;
    case 4: s = s / 7.f; break;
    case 5: s = fmaf(s, s, 3.f); break;
    case 6: s = __ballot_sync(~0u, t & 1) / 1024.f; break;
    }
    atomicAdd(f, s);
    atomicMax(reinterpret_cast<int *>(m) + 8, t);
    const int8_t q = int8_t(max(-127, min(127, __float2int_rn(s / 3))));
    f[1 + t] = kept[t & 7] + q;
    d[t] = double(s) / 3 + floor(double(s) * 0.1);
    uint4 v = reinterpret_cast<uint4 *>(m + 12)[t];
    v.x = (v.x & 0xFFu) << 16 ^ (v.y >> 8 & 0xFF00u) ^ uint32_t((uint64_t(v.z) << 32 | v.w) << n >> 32);
    v.y = (int(v.x) >> 3) % 77 + __umulhi(v.z, v.w) + __mulhi(int(v.x), int(v.w)) + __clz(int(v.w)) + __popc(v.x);
    v.z = uint32_t((uint64_t(v.z) << 32 | v.w) / 1000003u % 65521u);
    reinterpret_cast<uint4 *>(m + 12)[t] = v;
}
"""


def real_nvcc():
    """NVIDIA's compiler, if it is installed besides the stand-in."""
    for folder in os.environ["PATH"].split(os.pathsep):
        found = Path(folder, "nvcc")
        if folder != str(Path(OUT).resolve() / "bin") and os.access(found, os.X_OK):
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
            if "NVIDIA (R) Cuda compiler driver" in told:
                return str(found)
    return None


def test_what_nvcc_writes_gives_what_its_source_gives(context, tmp_path):
    """The same kernel in two independent ways: nvcc's PTX, and the source compiled by g++."""
    nvcc = real_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc of NVIDIA's here")
    (tmp_path / "probe.cu").write_text(PROBE)
    options = ["-arch=compute_75", "-fmad=false", "probe.cu"]
    subprocess.run([nvcc, "-ptx", "-o", "probe.ptx", *options], cwd=tmp_path, check=True)
    subprocess.run([shutil.which("nvcc"), "-cubin", "-o", "probe.cubin", *options], cwd=tmp_path, check=True)
    modules = load((tmp_path / "probe.ptx").read_text()), drv.module_from_file(str(tmp_path / "probe.cubin"))
    for n in range(8):
        rng = np.random.default_rng(n)
        arrays = [
            rng.integers(-128, 128, 128, np.int8),
            rng.integers(0, 2**32, 12 + 128, np.uint32),
            np.zeros(33, "f4"),
            np.zeros(32),
        ]
        left = []
        for module in modules:
            memory = [drv.to_device(array) for array in arrays]
            module.get_function("probe")(*memory, np.int32(n), block=(32, 1, 1), shared=128)
            left.append([drv.from_device_like(m, array) for m, array in zip(memory, arrays, strict=True)])
        (a, m, f, d), (a_of_source, m_of_source, f_of_source, d_of_source) = left
        np.testing.assert_allclose(f[0], f_of_source[0], rtol=1e-6)  # a sum in another order
        for ptx, source in ((a, a_of_source), (m, m_of_source), (f[1:], f_of_source[1:]), (d, d_of_source)):
            np.testing.assert_array_equal(ptx, source)


def _loads(text, results):
    done = subprocess.run([f"{OUT}/bin/ptx", text], capture_output=True, text=True, check=False)
    results.put(done.stdout)


def test_many_processes_make_the_same_module_at_once(tmp_path):
    text = HEADER + kernel("tested", f"mov.u32 %r0, {os.getpid()};", 1)  # not cached yet
    (tmp_path / "kernels.ptx").write_text(text)
    running = multiprocessing.get_context("spawn")
    results = running.Queue()
    processes = [running.Process(target=_loads, args=(tmp_path / "kernels.ptx", results)) for _ in range(4)]
    for process in processes:
        process.start()
    told = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    (path,) = map(Path, map(str.strip, told))
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert list(path.parent.glob(f"{path.stem}*{path.suffix}")) == [path], "nothing half written is left"
