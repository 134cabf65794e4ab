// Runs the loops of cpu_loops.cpp on generated numbers and prints a hash of the buffers of each kind, by which
// test_other_compilers.py compares compilers and processors.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu_loops.h"

using namespace puzzlelib_rmsprop;

static u32 state = 12345;

static u32 random_bits() { return state = state * 1664525u + 1013904223u; }

// Returns a number between -1 and 1 times a power of two, which is exact in the arithmetic of every dtype.
static double number(int spread)
{
    double x = (int(random_bits() >> 8) - (1 << 23)) / double(1 << 23);
    for (int i = int((random_bits() >> 8) % u32(2 * spread + 1)) - spread; i; i += i < 0 ? 1 : -1)
        x *= i < 0 ? 0.5 : 2.0;
    return x;
}

static void fill(std::vector<char> &to, u32 kind, u64 size, int spread)
{
    for (u64 i = 0; i < size; ++i) {
        const double x = number(spread);
        const float f = float(x);
        u32 bits;
        memcpy(&bits, &f, 4);
        if (kind == 8)
            memcpy(&to[8 * i], &x, 8);
        else if (kind == 4)
            memcpy(&to[4 * i], &f, 4);
        else {  // 16 bits that are not NaN or infinity
            const unsigned short half = kind == 2 ? (unsigned short)(bits >> 16) : (unsigned short)((bits >> 16 & 0xBBFFu));
            memcpy(&to[2 * i], &half, 2);
        }
    }
}

static u64 hash(u64 h, const std::vector<char> &bytes)
{
    for (const char c : bytes)
        h = (h ^ (unsigned char)c) * 1099511628211ull;
    return h;
}

int main(int argc, char **argv)
{
    const int spread = argc > 1 ? atoi(argv[1]) : 10;
    // element sizes of the parameter (1: float16, 2: bfloat16) and of the state, in the order of KINDS
    const u32 stored[] = {4, 8, 1, 2, 4, 1, 2, 1, 2, 1, 2, 4, 1, 2, 1, 2};
    const u32 kept[] = {4, 8, 4, 4, 2, 2, 2, 4, 4, 2, 2, 1, 1, 1, 1, 1};
    for (u32 kind = 0; kind < 16; ++kind) {
        const u64 size = 3 * 1024 + 77;
        const u32 item = stored[kind] < 4 ? 2 : stored[kind];
        std::vector<char> param(size * item), grad(size * item), mg(size * kept[kind]), variance(mg), delta(mg), master(size * 4);
        std::vector<char> scales((size + BLOCK - 1) / BLOCK * STATES);
        fill(param, stored[kind], size, 3);
        Hyper hyper = {1e-2, 0.95, 1 - 0.95, 0.95 * (1 - 0.95), 0.9, 1e-4};
        if (stored[kind] != 8)
            hyper.alpha = double(float(0.95)), hyper.beta = 1 - hyper.alpha, hyper.gain = hyper.alpha * hyper.beta;
        Segment segment = {};
        segment.param = u64(param.data()), segment.grad = u64(grad.data()), segment.mg = u64(mg.data());
        segment.variance = u64(variance.data()), segment.delta = u64(delta.data());
        segment.master = (kind >= 7 && kind < 11) || kind >= 14 ? u64(master.data()) : 0;
        segment.scales = u64(scales.data());
        segment.size = size, segment.first = 0xFFFFFF00ull, segment.learnRate = 0.7, segment.momRate = 0.123;
        segment.wc = 0.5, segment.key = 7, segment.kind = kind;
        const Hyper hypers[] = {hyper, hyper};
        StepOptions options = {};
        KernelArgs args = {};
        args.segments = u64(&segment), args.hypers = u64(hypers), args.options = u64(&options), args.count = 1, args.size = size;
        Chunk chunk = {0, 0};
        SquareSum partial = {};
        Statistics statistics = {0, 1, 1, 1, 0, 0, 0};
        args.chunks = u64(&chunk), args.partials = u64(&partial), args.chunkCount = 1, args.statistics = u64(&statistics);
        args.policy = {3.0, 1, 1, 0.0625, 16, 0};
        Operations &operations = options.operations;
        operations.count = 4;
        operations.operation[0] = {SCALE, 0.7, 0, 0}, operations.operation[1] = {CLIP, -0.4, 0.6, 0};
        operations.operation[2] = {DECAY, -0.1, 0, 0}, operations.operation[3] = {LASSO, 0.05, 0, 0};
        u64 h = 14695981039346656037ull;
        for (u32 step = 1; step < 6; ++step) {
            fill(grad, stored[kind], size, spread);
            options.seed[0] = step * 77, options.seed[1] = step * 99;
            operations.count = step % 2 ? 4 : 0;
            baseline::loops.sum(args, 0, 1);
            baseline::loops.conclude(args);
            baseline::loops.update(args, 0, 1500);
            baseline::loops.update(args, 1500, size);
            std::vector<char> record((char *)&statistics, (char *)&statistics + sizeof statistics);
            for (const std::vector<char> *each : {&param, &mg, &variance, &delta, &scales, &master, &record})
                h = hash(h, *each);
        }
        baseline::loops.operate(args);
        printf("%u %016llx\n", kind, hash(h, grad));
    }
}
