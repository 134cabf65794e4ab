"""Memory in PTX: widths, vectors, state spaces, atomics, and invalid accesses."""

import numpy as np
import pytest

from tests.cuda.simulator.machine import control, drv
from tests.cuda.simulator.ptx.running import HEADER, kernel, launch, load
from tests.cuda.simulator.test_settings import python


def run(body, arrays, threads=1, blocks=1, variables="", registers=""):
    """Runs a kernel. %p0, %p1, ... are the addresses of the arrays."""
    module = load(HEADER + variables + kernel("tested", body, len(arrays), registers))
    launch(module, "tested", arrays, threads, blocks)
    return module


WIDTHS = [
    ("u8", "%h", np.uint8),
    ("s8", "%h", np.int8),
    ("u16", "%h", np.uint16),
    ("s16", "%h", np.int16),
    ("b32", "%r", "u4"),
]
WIDTHS += [
    ("f32", "%f", "f4"),
    ("b64", "%q", "u8"),
    ("f64", "%d", "f8"),
    ("u64", "%q", "u8"),
    ("s32", "%r", "i4"),
    ("b8", "%h", "u1"),
]


@pytest.mark.parametrize(("kind", "register", "dtype"), WIDTHS)
def test_every_width_and_vector(context, kind, register, dtype):
    source = np.arange(100, 116).astype(dtype)
    for count in (1, 2, 4):
        if count * source.itemsize > 16:
            continue
        vector = "" if count == 1 else f".v{count}"
        given = ", ".join(f"{register}{i}" for i in range(count))
        other = ", ".join(f"{register}{i}" for i in reversed(range(count)))
        given, other = (text if count == 1 else f"{{{text}}}" for text in (given, other))
        to = np.zeros_like(source)
        step = count * source.itemsize
        body = "".join(
            f"ld.global{vector}.{kind} {given}, [%p0+{at}]; st.global{vector}.{kind} [%p1+{at}], {other};\n"
            for at in range(0, source.nbytes, step)
        )
        run(body, [source, to])
        np.testing.assert_array_equal(to, source.reshape(-1, count)[:, ::-1].ravel())


def test_wider_registers(context):
    source, to = np.array([-1, 127, -128, 5], np.int8), np.zeros(8, np.uint32)
    body = """
        ld.global.s8 %r0, [%p0]; ld.global.u8 %r1, [%p0]; ld.global.s8 %h0, [%p0+2]; cvt.u32.u16 %r2, %h0;
        ld.global.v2.u8 {%r3, %r4}, [%p0+2]; ld.global.s8 %q0, [%p0+2]; mov.b64 {%r5, %r6}, %q0;
        st.global.v4.u32 [%p1], {%r0, %r1, %r2, %r3}; st.global.v2.u32 [%p1+16], {%r4, %r6};
        mov.b32 %r7, 0x12345678; st.global.u8 [%p1+24], %r7; st.global.u8 [%p1+25], %r7; st.global.u16 [%p1+26], %r7;
        st.global.v4.u8 [%p1+28], {%r7, %r0, %h0, %r1};
    """
    run(body, [source, to])
    assert to.tolist() == [2**32 - 1, 255, 0xFF80, 128, 5, 2**32 - 1, 0x56787878, 0xFF80FF78]


def test_hints_change_nothing(context):
    source, to = np.arange(8, dtype=np.uint32), np.zeros(8, np.uint32)
    loads = [
        "global.nc",
        "global.ca",
        "global.cg",
        "global.cs",
        "global.lu",
        "global.cv",
        "relaxed.gpu.global",
        "acquire.sys.global",
    ]
    stores = [
        "global.wb",
        "global.cg",
        "global.cs",
        "global.wt",
        "relaxed.cta.global",
        "release.gpu.global",
        "volatile.global",
        "weak",
    ]
    body = "".join(
        f"ld.{hint}.u32 %r0, [%p0+{4 * i}]; st.{s}.u32 [%p1+{4 * i}], %r0;\n"
        for i, (hint, s) in enumerate(zip(loads, stores, strict=True))
    )
    body += "ld.global.L1::no_allocate.L2::128B.u32 %r0, [%p0]; prefetch.global.L2 [%p0]; membar.gl; fence.acq_rel.gpu;"
    run(body, [source, to])
    assert (to == source).all()


def test_shared_memory(context):
    """Variables of the file and of the kernel are adjacent, dynamic shared memory follows."""
    variables = ".shared .b8 first;\n.shared .align 8 .b8 outer[8];\n.extern .shared .align 16 .b8 more[];\n"
    own = "  .shared .align 4 .f32 own;\n"
    body = """
        mov.u32 %r12, first; mov.u32 %r0, outer; mov.u64 %q0, more; mov.u32 %r1, own;
        st.shared.u32 [outer+4], 7; st.shared.f32 [%r1], 0f40000000; mov.b32 %r3, 9; st.shared.u32 [%q0+4], %r3;
        ld.shared.u32 %r4, [%r0+4]; ld.shared.f32 %f0, [own]; ld.shared.u32 %r5, [more+4];
        ld.shared.v2.u32 {%r6, %r11}, [outer];
        cvta.shared.u64 %q1, %q0; ld.u32 %r7, [%q1+4];
        mov.u64 %q2, outer; cvta.shared.u64 %q3, %q2; ld.u32 %r8, [%q3+4];
        cvta.to.shared.u64 %q4, %q1; sub.s64 %q5, %q4, %q0; cvta.to.shared.u64 %q6, %q3; sub.s64 %q7, %q6, %q2;
        or.b64 %q5, %q5, %q7; cvt.u32.u64 %r9, %q5;
        cvt.rzi.u32.f32 %r10, %f0;
        st.global.v4.u32 [%p0], {%r4, %r10, %r5, %r7}; st.global.v4.u32 [%p0+16], {%r8, %r9, %r6, %r5};
    """
    module = load(HEADER + variables + kernel("tested", body, 1, own))
    to = np.zeros(8, np.uint32)
    memory = drv.to_device(to)
    module.get_function("tested")(memory, block=(1, 1, 1), shared=16)
    assert drv.from_device(memory, 8, np.uint32).tolist() == [7, 2, 9, 9, 7, 0, 0xCDCDCDCD, 9]


BEYOND = "access of {size} bytes at offset {at} of {end} bytes of shared memory, line"


@pytest.mark.parametrize(
    ("access", "report"),
    [
        ("st.shared.u32 [%r0+8], %r1;", BEYOND.format(size=4, at=8, end=8)),
        ("ld.shared.u32 %r1, [%r0+-4];", BEYOND.format(size=4, at=2**32 - 4, end=8)),
        ("ld.shared.v2.u32 {%r1, %r2}, [%r0+4];", "which is not a multiple of 8, tested:"),
        ("ld.shared.v2.u32 {%r1, %r2}, [%r0+8];", BEYOND.format(size=8, at=8, end=8)),
        ("ld.shared.u32 %r1, [%r0+2];", "which is not a multiple of 4, tested:"),
        ("st.shared.u32 [more+8], %r1;", "write of 4 bytes at offset 8 of 8 bytes of dynamic shared memory"),
        ("ld.shared.u32 %r1, [%p0];", "of 8 bytes of shared memory, line"),
        ("ld.global.u32 %r1, [%p0+64];", "read of 4 bytes"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0+56];", "which is not a multiple of 16"),
        ("ld.global.u32 %r1, [%r0];", "a null pointer"),
        ("ld.global.u32 %r1, [0x12340000];", "pageable host memory"),
        ("mov.b64 %q1, tested_0; ld.param.u64 %q2, [%q1+8];", "access of 8 bytes at offset 8 of 8 bytes of the parameters"),
        ("trap;", "trap failed, tested:"),
        ("mov.u32 %r1, 2; brx.idx %r1, list;", "of the targets of a jump"),
        ("atom.global.add.u32 %r1, [%p0+64], 1;", "read of 4 bytes"),
    ],
)
def test_what_is_not_the_kernels(context, access, report):
    variables = ".extern .shared .align 16 .b8 more[];\n"
    body = f"mov.u32 %r0, own; mov.u32 %r1, 1;\n{access}\nlist: .branchtargets A, A;\nA:\n mov.u64 %q0, more;"
    module = load(HEADER + variables + kernel("tested", body, 1, "  .shared .align 16 .b8 own[8];\n"))
    memory = drv.to_device(np.zeros(16, np.uint32))
    module.get_function("tested")(memory, block=(1, 1, 1), shared=8)
    with pytest.raises(drv.Error):
        drv.Context.synchronize()
    found = control.clear_fault()
    assert found.startswith("kernel tested: ")
    assert report in found
    assert found.endswith("block (0, 0, 0), thread (0, 0, 0)")


def test_what_was_never_written_is_not_read(context):
    module = load(HEADER + kernel("tested", "ld.global.u32 %r0, [%p0+4]; st.global.u32 [%p0], %r0;", 1))
    memory = drv.mem_alloc(8)
    drv.memset_d8(memory, 0, 4)
    module.get_function("tested")(memory, block=(1, 1, 1))
    with pytest.raises(drv.Error):
        drv.Context.synchronize()
    assert "never written" in control.clear_fault()
    drv.memset_d8(memory, 0, 8)
    module.get_function("tested")(memory, block=(1, 1, 1))
    drv.Context.synchronize()


def test_without_checks():
    body = "mov.u32 %r0, 7; st.global.u32 [%p0+4], %r0; ld.global.u32 %r1, [%p0+4]; st.global.u32 [%p0], %r1;"
    text = HEADER + kernel("tested", body, 1)
    done = python(
        f"""
        module, memory = drv.module_from_buffer({text.encode()!r} + bytes(1)), drv.mem_alloc(4)
        module.get_function("tested")(memory, block=(1, 1, 1))
        print(drv.from_device(memory, 1, np.uint32))
        """,
        CUSIM_CHECK="0",
        CUSIM_PTX="1",
    )
    assert (done.stdout, done.stderr) == ("[7]\n", "")


def test_local_memory(context):
    body = """
        mov.u64 %q0, depot; cvta.local.u64 %q1, %q0;
        st.local.v2.u32 [%q0], {%i, %i}; add.s32 %r0, %i, 1; st.u32 [%q1+8], %r0; st.local.u32 [depot+12], 5;
        ld.u32 %r1, [%q1+4]; ld.local.v2.u32 {%r2, %r3}, [%q0+8]; add.s32 %r1, %r1, %r2; add.s32 %r1, %r1, %r3;
        mad.lo.u64 %q2, %x, 4, %p0; bar.sync 0; st.global.u32 [%q2], %r1;
    """
    to = np.zeros(64, np.uint32)
    run(body, [to], threads=64, registers="  .local .align 16 .b8 depot[16];\n")
    assert (to == 2 * np.arange(64) + 6).all(), "each thread has its own"


def test_variables_of_the_file(context):
    variables = """
        .visible .const .align 4 .f32 scales[2] = {0f3F800000, 0f40000000};
        .global .align 2 .b8 bytes[4] = {1, 2, 0x80, 255};
        .visible .global .align 8 .u64 count;
    """
    body = """
        ld.const.f32 %f0, [scales+4]; mov.u64 %q0, bytes; ld.global.s8 %r0, [%q0+2]; ld.global.u64 %q1, [count];
        add.s64 %q1, %q1, 1; st.global.u64 [count], %q1; atom.global.add.u64 %q2, [count], 10;
        mov.u64 %q3, scales; ld.const.f32 %f1, [%q3]; cvt.rni.s32.f32 %r1, %f0;
        cvt.rni.s32.f32 %r2, %f1; cvt.u32.u64 %r3, %q1;
        st.global.v4.u32 [%p0], {%r0, %r1, %r2, %r3};
    """
    to = np.zeros(4, np.int32)
    module = run(body, [to], variables=variables)
    assert to.tolist() == [-128, 2, 1, 1]
    address, size = module.get_global("count")
    assert (drv.from_device(address, 1, np.uint64)[0], size) == (11, 8)
    drv.memcpy_htod(module.get_global("scales")[0], np.array([3, 4], np.float32))
    launch(module, "tested", [to], 1)
    assert to.tolist() == [-128, 4, 3, 12]


def test_parameters_by_their_layout(context):
    text = f"""{HEADER}
        .visible .entry tested(.param .u8 a, .param .align 8 .b8 b[12], .param .f32 c, .param .u64 .ptr .global .align 4 to)
        .maxntid 2, 1, 1
        {{
            .reg .b32 %r<4>; .reg .b64 %q<4>; .reg .f32 %f<2>;
            ld.param.u8 %r0, [a]; mov.b64 %q0, b; ld.param.u32 %r1, [%q0+8]; ld.param.u32 %r2, [b+4]; ld.param.f32 %f0, [c];
            ld.param.u64 %q1, [to]; cvta.to.global.u64 %q2, %q1; cvt.rni.s32.f32 %r3, %f0;
            st.global.v4.u32 [%q2], {{%r0, %r1, %r2, %r3}}; ret;
        }}"""
    function = load(text).get_function("tested")
    memory = drv.to_device(np.zeros(4, np.uint32))
    layout = np.dtype(
        {"names": list("abct"), "formats": ["u1", "3u4", "f4", "u8"], "offsets": [0, 8, 20, 24], "itemsize": 32}
    )
    given = np.zeros((), layout)
    given["a"], given["b"], given["c"], given["t"] = 200, [1, 2, 3], 4.0, int(memory)
    function._launch_kernel((1, 1), (1, 1, 1), given.tobytes(), 0, None)
    assert drv.from_device(memory, 4, np.uint32).tolist() == [200, 3, 2, 4]
    with pytest.raises(drv.LogicError, match="invalid"):
        function._launch_kernel((1, 1), (1, 1, 1), given.tobytes() + bytes(8), 0, None)
    assert "kernel tested: 40 bytes of arguments given, its parameters take 32" in control.clear_fault()
    with pytest.raises(drv.LogicError, match="invalid"):  # .maxntid
        function._launch_kernel((1, 1), (3, 1, 1), given.tobytes(), 0, None)


ATOMICS = {
    "add.u32": lambda old, x: old + x,
    "add.s32": lambda old, x: old + x,
    "add.u64": lambda old, x: old + x,
    "add.f32": lambda old, x: old + x,
    "add.f64": lambda old, x: old + x,
    "exch.b32": lambda old, x: x,
    "exch.b64": lambda old, x: x,
    "and.b32": lambda old, x: old & x,
    "or.b64": lambda old, x: old | x,
    "xor.b32": lambda old, x: old ^ x,
    "min.s32": min,
    "max.s32": max,
    "min.u32": min,
    "max.u64": max,
    "inc.u32": lambda old, x: 0 if old >= x else old + 1,
    "dec.u32": lambda old, x: x if old == 0 or old > x else old - 1,
}


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(context, space):
    """One thread: the value before and after. Many threads: no update is lost."""
    kernels, expected, arrays = "", [], []
    for i, (name, function) in enumerate(ATOMICS.items()):
        kind = name[-3:]
        register = {"f32": "%f", "f64": "%d"}.get(kind, "%r" if kind[1:] == "32" else "%q")
        dtype = np.dtype(f"{ {'f': 'f', 's': 'i'}.get(kind[0], 'u') }{int(kind[1:]) // 8}")
        step = dtype.itemsize
        value, start = (-5, 3) if kind[0] == "s" else (5, 6)
        place = "[%p0]" if space == "global" else "[cell]"
        plain = "b" + kind[1:] if kind[0] != "f" else kind
        again = f"red.{space}.{name} {place}, {register}0;"
        if name.startswith("exch"):
            again = f"atom.{space}.{name} {register}9, {place}, {register}0;"
        into = out = ""
        if space == "shared":
            into = f"st.shared.{plain} [cell], {register}1;"
            out = f"ld.shared.{plain} {register}1, [cell]; st.global.{plain} [%p0], {register}1;"
        body = f"""
            ld.global.{plain} {register}0, [%p0+{step}]; ld.global.{plain} {register}1, [%p0]; {into}
            atom.{space}.{name} {register}2, {place}, {register}0; {again}
            {out} st.global.{plain} [%p0+{step}], {register}2;
        """
        kernels += kernel(f"k{i}", body, 1, "  .shared .align 8 .b8 cell[8];\n")
        arrays.append(np.array([start, value], dtype))
        expected.append([function(function(start, value), value), start])
    module = load(HEADER + kernels)
    for i, (array, right) in enumerate(zip(arrays, expected, strict=True)):
        launch(module, f"k{i}", [array], 1)
        assert array.tolist() == right, list(ATOMICS)[i]


def test_atomics_of_many_threads_and_of_subnormal_numbers(context):
    tiny = np.float32(1e-40)
    body = """
        red.global.add.u32 [%p0], 1; add.u32 %r2, %i, 1; atom.global.cas.b32 %r0, [%p0+4], 0, %r2;
        cvt.u64.u32 %q1, %r2; atom.cas.b64 %q0, [%p2], 500, %q1; setp.eq.u32 %c0, %r0, 0; @%c0 st.global.u32 [%p0+8], %r2;
        setp.eq.u64 %c0, %q0, 500; @%c0 st.global.u64 [%p2+8], %q1; atom.relaxed.gpu.global.max.u32 %r1, [%p0+12], %i;
        mov.f32 %f0, 0f000116C2; atom.global.add.f32 %f1, [%p1], %f0; atom.shared.add.f32 %f1, [cell], %f0;
        ld.shared.f32 %f2, [cell]; st.global.f32 [%p1+4], %f2;
    """
    body = body.replace(
        "atom.shared", "setp.eq.u32 %c1, %i, 0; @%c1 st.shared.f32 [cell], 0f00000000; bar.sync 0; atom.shared"
    )
    body = body.replace("ld.shared", "bar.sync 0; ld.shared")
    counts, sums, words = np.zeros(4, np.uint32), np.zeros(2, np.float32), np.array([500, 0], np.uint64)
    run(body, [counts, sums, words], threads=64, registers="  .shared .align 4 .f32 cell;\n")
    assert (counts[0], counts[3]) == (64, 63)
    assert 0 < counts[1] == counts[2] <= 64, "the first thread's"
    assert 0 < words[0] == words[1] <= 64
    assert sums[0] == 0, "flushed in global memory"
    assert np.isclose(sums[1], 64 * tiny, rtol=1e-4), "kept in shared memory"
