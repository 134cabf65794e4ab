"""The emulated 8-bit formats, from which the library's was chosen, match their names."""

import pytest

torch = pytest.importorskip("torch")

from benchmarks import state_formats as formats  # noqa: E402

FORMATS = {
    f"{f.companding}, {f.signed=}, {f.block=}, {f.exact=}, {f.random=}": f
    for state in formats.CANDIDATES.values()
    for f in (state.mg, state.variance, state.delta)
    if f
}


def numbers(signed, count=1000, seed=0):
    """Returns numbers of many sizes, including a zero; the last block is shorter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator) * 10 ** (4 * torch.rand(count, generator=generator) - 8)
    x[7] = 0
    return x if signed else x.abs()


@pytest.mark.parametrize("name", FORMATS)
def test_storing_what_was_read_changes_nothing(name):
    format, generator = FORMATS[name], torch.Generator().manual_seed(1)
    once = format.stored(numbers(format.signed), generator)
    again = format.stored(once, generator)
    # a scale that is not a power of two is rounded when it is recomputed
    assert torch.allclose(once, again, rtol=1e-5 if format.exact else 0, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_becomes_one_of_its_neighbours(name):
    format, generator = FORMATS[name], torch.Generator().manual_seed(1)
    x = numbers(format.signed)
    table = formats.levels(format.companding, 128 if format.signed else 256)
    gap = (table[1:] - table[:-1]).max() * 2  # the scale is at least half of the largest number
    largest = torch.nn.functional.pad(x.abs(), (0, -len(x) % format.block)).view(-1, format.block).amax(1)
    error = (format.stored(x, generator) - x).abs()
    assert (error <= gap * largest.repeat_interleave(format.block)[: len(x)]).all()
    assert (error > 0).sum() > len(x) / 2


def test_random_rounding_is_right_in_the_mean():
    generator = torch.Generator().manual_seed(1)
    x = numbers(True, 320)
    x[::32] = 1e-3  # the block's largest number is exact: numbers above the last code are rounded down
    x = x.clamp(-1e-3, 1e-3)
    draws = torch.stack([formats.E3M4.stored(x, generator) for _ in range(2000)])
    assert (draws != x).float().mean() > 0.5
    # six standard errors; a number that is stored exactly has only rounding errors
    assert ((draws.mean(0) - x).abs() <= 6 * draws.std(0) / 2000**0.5 + 1e-7 * x.abs()).all()


@pytest.mark.parametrize("zero", [True, False])
def test_a_variance_above_zero_stays_so(zero):
    generator = torch.Generator().manual_seed(1)
    x = numbers(False, 3200)
    stored = formats.Format("E4M4", signed=False, never_zero=not zero).stored(x, generator)
    assert bool(((stored == 0) & (x > 0)).any()) == zero
    assert (stored[x == 0] == 0).all()


@pytest.mark.parametrize(
    ("companding", "count", "first", "top"), [("E3M4", 128, 1 / 16 / 127, 247 / 127), ("E2M5", 124, 1 / 32 / 7, 13.75 / 7)]
)
def test_levels(companding, count, first, top):
    table = formats.levels(companding, 128)
    assert len(table) == count
    assert table[0] == 0
    assert table[1] == pytest.approx(first)
    assert table[-1] == pytest.approx(top)
    assert 1.0 in table
