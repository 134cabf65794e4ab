// The update rule and the operations on gradients, for one element. Loops are in cpu_loops.cpp and rmsprop_graves.cu.
//
// Compile without fused multiply-adds: then each operation is rounded separately, and every device gives the same bits.
// KERNEL marks functions for host and device. u32 and Hyper are defined in layout.h; widen, narrow and flushed in numbers.h.

#pragma once

#include "numbers.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

// The hyper-parameters of a segment in the dtype of the arithmetic. Factors are applied in double, then rounded once.
template <class Real>
struct Coefficients {
    Real learnRate, alpha, beta, gain, momRate, epsilon;

    KERNEL Coefficients(const Hyper &hyper, const Segment &segment)
        : learnRate(Real(hyper.learnRate * segment.learnRate)), alpha(Real(hyper.alpha)), beta(Real(hyper.beta)),
          gain(Real(hyper.gain)), momRate(Real(hyper.momRate * segment.momRate)), epsilon(Real(hyper.epsilon))
    {
    }
};

// Graves (2013), eq. 38-45. The variance of the gradient is E[g*g] - E[g]*E[g]. This difference cancels if the gradient is
// nearly constant, so the variance is updated by its own recurrence instead, which cannot become negative.
template <class Real>
KERNEL void graves(Real &param, Real g, Real &mg, Real &variance, Real &delta, const Coefficients<Real> &c)
{
    g = flushed(g);
    const Real d = g - mg;
    mg = flushed(c.alpha * mg + c.beta * g);
    variance = flushed(c.alpha * variance + c.gain * d * d);
    delta = flushed(c.momRate * delta + c.learnRate * g / std::sqrt(variance + c.epsilon));
    param = flushed(param + delta);
}

// Returns the parameter after a step of `delta` with decoupled weight decay. decay * param is subtracted from the step rather
// than from the parameter, where a small number would be rounded off at every step.
template <class Real>
KERNEL Real decayed(Real param, Real delta, Real decay)
{
    return flushed(param + flushed(delta - flushed(decay * param)));
}

// Returns the factor `decay` of decayed(), computed in double and rounded once.
template <class Real>
KERNEL Real decay_of(double decay, const Hyper &hyper, const Segment &segment)
{
    return segment.wc > 0.0 ? flushed(Real(std::fabs(hyper.learnRate * segment.learnRate) * decay * segment.wc)) : Real(0);
}

// ---- operations on gradients ---------------------------------------------------------------------------------------

// An operation with its numbers for one segment, in the dtype of the arithmetic.
template <class Real>
struct Prepared {
    u32 kind;
    Real value, other;
};

// `at_address` is the number at the operation's address, or 1 if it has no address.
template <class Real>
KERNEL Prepared<Real> prepared(const Operation &operation, double at_address, double wc)
{
    const bool decays = operation.kind == DECAY || operation.kind == LASSO;
    const u32 kind = decays && !(wc > 0.0) ? NOTHING : u32(operation.kind);
    return {kind, Real(operation.value * (decays ? wc : at_address)), Real(operation.other)};
}

// Returns a gradient after one operation. NaN is kept.
template <class Real>
KERNEL Real operated(u32 kind, Real value, Real other, Real g, Real p)
{
    switch (kind) {
    case SCALE:
        return g * value;
    case CLIP:
        g = g < value ? value : g;
        return g > other ? other : g;
    case DECAY:
        return g + value * p;
    case LASSO:
        return g + value * (p > Real(0) ? Real(1) : p < Real(0) ? Real(-1) : p);
    default:
        return g;
    }
}

// Returns the current parameter: the master weight, unless the parameter was changed since the last step.
template <class Stored>
KERNEL float current(Stored param, float master)
{
    Stored rounded;
    narrow(master, rounded);
    return widen(rounded) == widen(param) ? master : widen(param);
}

// ---- the norm ------------------------------------------------------------------------------------------------------

// Elements are summed in lanes, then the lanes pairwise (the upper half is added to the lower half). The sums of chunks are
// added in the same way.

// Doubles >= LARGE are scaled by SHRINK before they are squared, so that their sum cannot overflow.
constexpr double LARGE = 0x1p480, SHRINK = 0x1p-600;

KERNEL double square(float g) { return double(g) * double(g); }
KERNEL double square(double g) { return std::fabs(g) < LARGE ? g * g : 0.0; }
KERNEL double large_square(float) { return 0.0; }
KERNEL double large_square(double g)
{
    const double shrunk = g * SHRINK;
    return std::fabs(g) < LARGE ? 0.0 : shrunk * shrunk;
}

// Returns whether the square, which enters the variance, is infinite or NaN: only then is x - x not 0. (Not every compiler
// vectorizes isfinite.)
template <class Real>
KERNEL bool is_bad(Real g)
{
    return !(g * g - g * g == Real(0));
}

KERNEL void add(SquareSum &to, const SquareSum &other)
{
    to.sum += other.sum;
    to.large += other.large;
    to.bad |= other.bad;
}

// ---- clipping, skipping and the loss scale -------------------------------------------------------------------------

// A bad step is skipped and lowers the scale, `interval` consecutive good steps raise it. If interval is 0, it is constant.
KERNEL void conclude(Statistics &s, const SquareSum &all, const ScalingPolicy &policy)
{
    const double root = std::sqrt(all.large == 0.0 ? all.sum : all.large + all.sum * SHRINK * SHRINK);
    s.norm = all.large == 0.0 ? root : root / SHRINK;
    s.factor = s.norm > policy.limit ? policy.limit / s.norm : s.norm == s.norm ? 1.0 : s.norm;  // NaN is kept
    s.unscale = 1.0 / s.scale;
    s.bad = !all.bad ? 0 : s.bad == ~0u ? s.bad : s.bad + 1;
    s.skipped += all.bad != 0;
    if (policy.interval == 0)
        return;
    s.good = s.bad ? 0 : s.good + 1;
    if (s.bad) {
        s.scale = s.scale * policy.backoff < policy.least ? policy.least : s.scale * policy.backoff;
    } else if (s.good >= policy.interval) {
        s.scale = s.scale * policy.growth > policy.most ? policy.most : s.scale * policy.growth;
        s.good = 0;
    }
}

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
