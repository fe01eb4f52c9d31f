// Max and min of half types by their bits: 16-bit floats, their magnitude inverted where they are
// negative, are ordered as 16-bit integers are. Nothing is widened, and a vector holds twice as
// many: 5x5, stride 1, channels last, 0.46 of float32's time where 0.87 were needed (AVX-512, 2
// threads). Integers have 0.0 above -0.0 and give a NaN a rank, so inputs with either of them go
// the way of floats.
#pragma once

#include "stripes.h"

namespace {

template <class R>
struct Keys : R {
    static constexpr bool positions = false;
    static constexpr bool plain = false;
    template <class S>
    using Accumulator = S;
    // Its own inverse.
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return static_cast<T>(x ^ ((x >> 15) & 0x7fff));
    }
    template <class T>
    static POOLKIT_INLINE T finish(T x, double p) {
        return lift(x, p);
    }
};

template <class S>
constexpr bool has_keys = same<S, Bfloat16> || same<S, Float16>;

// Whether there is a NaN or a -0.0 among n values.
template <class S>
POOLKIT_ONCE bool keys_mislead(const S* from, int64_t n) {
    constexpr uint16_t infinity = same<S, Bfloat16> ? 0x7f80 : 0x7c00;
    constexpr int64_t width = lanes<uint16_t>;
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
    Vec<uint16_t> most{};  // without its sign, twice: that of a NaN is above that of infinity
    Vec<int16_t> least{};  // -0.0 is the least integer
    const auto watch = [&](Vec<uint16_t> v) {
        const Vec<uint16_t> twice = v + v;
        most = twice > most ? twice : most;
        least = (Vec<int16_t>)v < least ? (Vec<int16_t>)v : least;
    };
    int64_t i = 0;
    for (; i + width <= n; i += width) watch(load<uint16_t>(bits + i));
    if (i < n && n >= width)
        watch(load<uint16_t>(bits + n - width));
    else if (i < n)
        watch(load_first<uint16_t>(bits, n, Vec<uint16_t>{}));
    return any(most > broadcast<uint16_t>(2 * infinity)) ||
           any(least == broadcast<int16_t>(-0x8000));
}

// Bytes of inputs looked through at a time: they are read again at once, from the first level of
// the cache, and what comes behind them arrives while they are pooled. Measured: 2x2, stride 2, one
// thread, 4.3 ms by 32 KB and 2.9 by 2 KB, where the copy of the same bytes takes 2.4.
constexpr int64_t kLookedThrough = 2 * 1024;

template <class R, class S>
void forward_by_keys(const Geometry& g, const Part& part) {
    Arena arena{static_cast<char*>(part.scratch)};
    Pooling<Keys<R>, int16_t, int16_t, int16_t, false> by_keys(g, part.inner, arena);
    Pooling<R, S, float, S, false> by_value(g, part.inner, arena);
    bool empty = false;  // windows that see nothing have no key
    int64_t plane = part.inner;
    for (int a = 0; a < g.axes; ++a) {
        plane *= g.axis[a].size;
        for (int64_t o = 0; o < g.axis[a].outputs; ++o) empty |= g.axis[a].count[o] == 0;
    }
    if (empty) return by_value.run(part);
    // A walk that keeps what the next row sees is not cut at every other row.
    const int64_t tasks = count_tasks(g, 1, part.inner);
    int64_t count = kLookedThrough / static_cast<int64_t>(sizeof(S)) * tasks / plane;
    const int64_t fewest = 4 * g.axis[0].taps;
    if (count < fewest) count = fewest;
    for (int64_t first = part.first; first < part.last; first += count) {
        Part some = part;
        some.first = first;
        some.last = at_most(first + count, part.last);
        const poolkit::Stripe stripe = stripe_of(g, part.inner, some.first, some.last);
        const S* from = static_cast<const S*>(part.x) + stripe.in;
        bool misled = false;
        for (int64_t row = 0; row < stripe.rows && !misled; ++row)
            misled = keys_mislead(from + row * stripe.pitch, stripe.columns);
        misled ? by_value.run(some) : by_keys.run(some);
    }
}

template <class R, class S>
int64_t scratch_by_keys(const Geometry& g, int64_t inner, bool positions) {
    const int64_t by_value = scratch_bytes<R, S, float, S>(g, inner, positions);
    const int64_t by_keys = scratch_bytes<Keys<R>, int16_t, int16_t, int16_t>(g, inner, false);
    return by_value > by_keys ? by_value : by_keys;
}

}  // namespace
