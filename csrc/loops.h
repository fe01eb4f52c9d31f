// What the loops share: sizes, scratch memory, and small numbers known to the compiler.
#pragma once

#include "kernels.h"
#include "reductions.h"

namespace {

using poolkit::Axis;
using poolkit::Geometry;
using poolkit::kMaxAxes;
using poolkit::kNowhere;
using poolkit::Part;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t power_of_two(int64_t at_least) {
    int64_t power = 1;
    while (power < at_least) power *= 2;
    return power;
}

template <class T>
constexpr POOLKIT_INLINE T at_most(T a, T b) {
    return b < a ? b : a;
}
template <class T>
constexpr POOLKIT_INLINE T at_least(T a, T b) {
    return a < b ? b : a;
}

// Carves arrays out of the scratch memory; with a null base it only counts the bytes.
struct Arena {
    char* base;
    int64_t used = 0;

    template <class T>
    T* take(int64_t n) {
        T* here = reinterpret_cast<T*>(base + used);
        used += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
        return base ? here : nullptr;
    }
};

// Calls body(constant) where a small number is known to the compiler, so that it unrolls.
template <int N>
struct Constant {
    static constexpr int value = N;
    POOLKIT_INLINE operator int64_t() const { return N; }
};
template <class Body>
POOLKIT_INLINE void with_taps(int64_t taps, Body body) {
    if (taps == 2)
        body(Constant<2>{});
    else if (taps == 3)
        body(Constant<3>{});
    else if (taps == 5)
        body(Constant<5>{});
    else
        body(taps);
}

}  // namespace
