"""Barriers, shuffles, votes, jumps and thread indices in PTX."""

import subprocess

import numpy as np
import pytest

from tests.cuda.simulator.machine import SEEDS, control, drv
from tests.cuda.simulator.ptx.running import HEADER, kernel, launch, load
from tests.cuda.simulator.test_settings import python

STORE = "mad.lo.u64 %q19, %x, 4, %p0; st.global.u32 [%q19], %r19;"


def run(body, threads=64, blocks=1, registers=""):
    to = np.zeros(threads * blocks, np.uint32)
    launch(load(HEADER + kernel("tested", f"{body}\n{STORE}", 1, registers)), "tested", [to], threads, blocks)
    return to


def shuffled(how, lane, b, c):
    """The lane from which a lane reads, and whether it is in range, as described in the PTX manual."""
    clamp, segment = c & 31, c >> 8 & 31
    first, last = lane & segment, lane & segment | clamp & ~segment
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | b & ~segment & 31}[how]
    within = source >= last if how == "up" else source <= last
    return (source, 1) if within else (lane, 0)


@pytest.mark.parametrize("how", ["up", "down", "bfly", "idx"])
def test_shuffles(context, how):
    cases = [(b, width) for b in (0, 1, 3, 8, 16, 31) for width in (32, 16, 8, 2)]
    kernels = ""
    for i, (b, width) in enumerate(cases):
        c = (32 - width) << 8 | (0 if how == "up" else 31)
        body = f"""
            add.u32 %r0, %i, 1000;
            shfl.sync.{how}.b32 %r1|%c0, %r0, {b}, {c}, -1; shfl.sync.{how}.b32 %r2, %r0, {b}, {c}, 0xffffffff;
            selp.u32 %r3, 100000, 0, %c0; add.u32 %r19, %r1, %r3; sub.u32 %r2, %r2, %r1; add.u32 %r19, %r19, %r2;
            {STORE}
        """
        kernels += kernel(f"k{i}", body, 1)
    module = load(HEADER + kernels)
    for i, (b, width) in enumerate(cases):
        to = np.zeros(64, np.uint32)
        launch(module, f"k{i}", [to], 64)
        c = (32 - width) << 8 | (0 if how == "up" else 31)
        found = [shuffled(how, lane, b, c) for lane in range(32)]
        expected = [1000 + 32 * warp + source + 100000 * within for warp in range(2) for source, within in found]
        assert to.tolist() == expected, (b, width)


def test_some_lanes_of_a_warp(context):
    """Masks of half a warp and of three lanes. The other lanes do not participate."""
    body = """
        mov.u32 %r19, 0; and.b32 %r0, %i, 31; setp.lt.u32 %c0, %r0, 16; @!%c0 bra AFTER;
        shfl.sync.bfly.b32 %r1, %i, 8, 31, 0xffff; shfl.sync.idx.b32 %r2, %i, 15, 31, 0xffff; mad.lo.u32 %r19, %r1, 100, %r2;
    AFTER:
        setp.eq.u32 %c1, %r0, 20; setp.eq.or.u32 %c1, %r0, 25, %c1; setp.eq.or.u32 %c1, %r0, 31, %c1;
        @%c1 bra THREE; bra.uni END;
    THREE:
        vote.sync.ballot.b32 %r19, %c1, 0x82100000; bar.warp.sync 0x82100000;
    END:
    """
    found = run(body, 32)
    expected = [100 * (i ^ 8) + 15 if i < 16 else 0 for i in range(32)]
    for lane in (20, 25, 31):
        expected[lane] = 0x82100000
    assert found.tolist() == expected


def test_votes_matches_and_reductions(context):
    t = np.arange(64)
    body = """
        rem.u32 %r0, %i, 3; setp.eq.u32 %c0, %r0, 0; vote.sync.ballot.b32 %r19, %c0, -1;
    """
    masks = [sum(1 << i for i in range(32) if (i + 32 * w) % 3 == 0) for w in range(2)]
    assert run(body).tolist() == np.repeat(masks, 32).tolist()
    body = """
        setp.lt.u32 %c0, %i, 32; vote.sync.all.pred %c1, %c0, -1; setp.eq.u32 %c2, %i, 40; vote.sync.any.pred %c3, %c2, -1;
        vote.sync.uni.pred %c4, %c2, -1; selp.u32 %r0, 1, 0, %c1; selp.u32 %r1, 2, 0, %c3; selp.u32 %r2, 4, 0, %c4;
        or.b32 %r19, %r0, %r1; or.b32 %r19, %r19, %r2;
    """
    assert run(body).tolist() == [5] * 32 + [2] * 32
    body = """
        shr.u32 %r0, %i, 3; match.any.sync.b32 %r1, %r0, -1; cvt.u64.u32 %q0, %r0; match.any.sync.b64 %r2, %q0, -1;
        match.all.sync.b32 %r3|%c0, %r0, -1; shr.u32 %r4, %i, 5; match.all.sync.b32 %r5|%c1, %r4, -1;
        sub.u32 %r2, %r2, %r1; add.u32 %r19, %r1, %r2; add.u32 %r19, %r19, %r3; @%c0 add.u32 %r19, %r19, 1;
        @!%c1 add.u32 %r19, %r19, 1; not.b32 %r5, %r5; add.u32 %r19, %r19, %r5;
    """
    assert run(body).tolist() == (0xFF << (t % 32 // 8 * 8)).tolist()
    body = """
        sub.s32 %r0, 20, %i; redux.sync.add.s32 %r1, %r0, -1; redux.sync.min.s32 %r2, %r0, -1;
        redux.sync.max.u32 %r3, %i, -1;
        redux.sync.or.b32 %r4, %i, -1; mul.lo.u32 %r3, %r3, 1000;
        sub.u32 %r19, %r1, %r2; add.u32 %r19, %r19, %r3; add.u32 %r19, %r19, %r4;
    """
    values = (20 - t).reshape(2, 32)
    expected = values.sum(1) - values.min(1) + 1000 * t.reshape(2, 32).max(1) + [31, 63]
    assert run(body).tolist() == np.repeat(expected, 32).tolist()
    assert run("activemask.b32 %r19;").tolist() == (1 << t % 32).tolist()


def test_barriers_that_count(context):
    body = """
        setp.lt.u32 %c0, %i, 5; bar.red.popc.u32 %r0, 0, %c0; bar.red.and.pred %c1, 0, %c0;
        barrier.cta.red.or.pred %c2, 0, %c0;
        selp.u32 %r1, 100, 0, %c1; selp.u32 %r2, 1000, 0, %c2; add.u32 %r19, %r0, %r1; add.u32 %r19, %r19, %r2;
    """
    assert set(run(body)) == {1005}


REVERSED = """
    shl.b32 %r0, %i, 2; mov.u32 %r1, cells; add.s32 %r2, %r1, %r0; st.shared.u32 [%r2], %i;
    {wait}
    sub.s32 %r3, 252, %r0; add.s32 %r4, %r1, %r3; ld.shared.u32 %r19, [%r4];
"""


@pytest.mark.parametrize("wait", ["bar.sync 0;", "barrier.sync 0;", "barrier.cta.sync.aligned 0;"])
def test_a_barrier_is_waited_for(context, wait):
    for seed in SEEDS:
        control.seed(seed)
        assert run(REVERSED.format(wait=wait), registers="  .shared .align 4 .b8 cells[256];\n").tolist() == list(
            range(63, -1, -1)
        )


def test_a_missing_barrier_shows(context):
    found = run(REVERSED.format(wait=""), registers="  .shared .align 4 .b8 cells[256];\n")
    assert 0xCDCDCDCD in found.tolist()


def test_threads_that_wait_for_different_things(context):
    module = load(HEADER + kernel("tested", "setp.lt.u32 %c0, %i, 3;\n@%c0 bar.warp.sync 0xff;\n@!%c0 bar.sync 0;", 1))
    memory = drv.to_device(np.zeros(1))
    module.get_function("tested")(memory, block=(8, 1, 1))
    with pytest.raises(drv.Error):
        drv.Context.synchronize()
    found = control.clear_fault()
    assert "deadlock" in found
    assert "3 threads (0, 1, 2) wait at a warp operation with mask 0xff in line" in found


def test_threads_that_wait_for_a_value(context):
    body = """
        setp.eq.u32 %c0, %i, 0; @%c0 bra WRITE;
    WAIT:
        ld.volatile.global.u32 %r0, [%p0+256]; setp.eq.u32 %c1, %r0, 0; @%c1 bra WAIT; bra.uni DONE;
    WRITE:
        st.volatile.global.u32 [%p0+256], 7;
    DONE:
        mov.u32 %r19, 1;
    """
    for seed in SEEDS:
        control.seed(seed)
        to = np.zeros(65, np.uint32)
        launch(load(HEADER + kernel("tested", f"{body}\n{STORE}", 1)), "tested", [to], 32)
        assert to[:32].all()


def test_a_loop_without_an_end_is_ended():
    text = HEADER + kernel("tested", "AGAIN:\n add.s32 %r0, %r0, 1; bra.uni AGAIN;", 1)
    done = python(
        f"""
        module = drv.module_from_buffer({text.encode()!r} + bytes(1))
        module.get_function("tested")(drv.mem_alloc(8), block=(2, 1, 1))
        drv.Context.synchronize()
        """,
        CUSIM_TIMEOUT="1",
        CUSIM_PTX="1",
    )
    assert "kernel tested: still running after 1 seconds" in done.stderr


def test_jumps_by_a_number_and_names_of_a_scope(context):
    body = """
        and.b32 %r0, %i, 3; mov.u32 %r19, 9;
        table: .branchtargets ZERO, ONE, ZERO, THREE;
        brx.idx %r0, table;
    ZERO:
        { .reg .b32 value; mov.u32 value, 10; bra.uni INNER; mov.u32 value, 0; INNER: mov.u32 %r19, value; }
        bra.uni END;
    ONE:
        { .reg .b32 value; mov.u32 value, 11; bra.uni INNER; mov.u32 value, 0; INNER: mov.u32 %r19, value; }
        bra END;
    THREE:
        mov.u32 %r19, 13;
    END:
    """
    assert run(body).tolist() == [10, 11, 10, 13] * 16


def test_indices(context):
    names = ["tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z"]
    names += [
        "nctaid.x",
        "nctaid.y",
        "nctaid.z",
        "laneid",
        "warpid",
        *(f"lanemask_{m}" for m in ("eq", "lt", "le", "gt", "ge")),
    ]
    body = """
        mov.u32 %r0, %tid.y; mov.u32 %r1, %ntid.x; mad.lo.u32 %r2, %r0, %r1, %tid.x; mov.u32 %r0, %tid.z;
        mov.u32 %r3, %ntid.y; mul.lo.u32 %r3, %r1, %r3; mad.lo.u32 %r2, %r0, %r3, %r2;
        setp.ne.u32 %c0, %r2, 45; mov.u32 %r4, %ctaid.x; setp.ne.or.u32 %c0, %r4, 1, %c0; mov.u32 %r4, %ctaid.y;
        setp.ne.or.u32 %c0, %r4, 2, %c0; @%c0 ret;
    """
    body += "".join(f"mov.u32 %r5, %{name}; st.global.u32 [%p0+{4 * i}], %r5;\n" for i, name in enumerate(names))
    module = load(HEADER + kernel("tested", body, 1))
    memory = drv.to_device(np.zeros(len(names), np.uint32))
    module.get_function("tested")(memory, block=(6, 4, 3), grid=(2, 3, 1))
    found = dict(zip(names, drv.from_device(memory, len(names), np.uint32).tolist(), strict=True))
    expected = dict.fromkeys(names, 0) | {"tid.x": 3, "tid.y": 3, "tid.z": 1, "ntid.x": 6, "ntid.y": 4, "ntid.z": 3}
    expected |= {"ctaid.x": 1, "ctaid.y": 2, "nctaid.x": 2, "nctaid.y": 3, "nctaid.z": 1, "laneid": 13, "warpid": 1}
    masks = {"eq": 1 << 13, "lt": (1 << 13) - 1, "le": (1 << 14) - 1, "gt": 2**32 - (1 << 14), "ge": 2**32 - (1 << 13)}
    assert found == expected | {f"lanemask_{name}": mask for name, mask in masks.items()}


def test_registers_that_nothing_was_written_to(context):
    assert run("mov.b32 %r19, %r0;").tolist() == [0xCDCDCDCD] * 64
    assert np.isnan(run("mov.b32 %r19, %f0;").view(np.float32)).all()


def test_the_translator_runs_by_hand(context, tmp_path):
    from tests.cuda.simulator.machine import OUT

    (tmp_path / "kernels.ptx").write_text(HEADER + kernel("tested", "", 1))
    done = subprocess.run([f"{OUT}/bin/ptx", tmp_path / "kernels.ptx"], capture_output=True, text=True, check=True, env={})
    assert done.stdout.endswith(".so\n")
