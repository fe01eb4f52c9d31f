// Medians of 3 x 3 and 5 x 5 windows of stride 1: columns are sorted once, for all the windows that
// see them. 20 smaller-or-larger steps for a vector of 3 x 3 windows instead of 36, and 90 instead
// of 202 for 5 x 5.
#pragma once

#include "whole.h"

namespace {

template <int Size>
struct SortedColumns;
template <>
struct SortedColumns<3> {
    static constexpr int lines = 3;
};
// Two neighbouring columns are merged too, as every window sees two such pairs and a column.
template <>
struct SortedColumns<5> {
    static constexpr int lines = 5 + 10;
};

template <class V>
POOLKIT_INLINE V middle_of(V a, V b, V c) {
    return larger(smaller(a, b), smaller(larger(a, b), c));
}

// Calls body(i) for vectors of columns that cover [0, n), n >= lanes; the last one is moved back.
template <class A, class Body>
POOLKIT_INLINE void each_columns(int64_t n, Body body) {
    for (int64_t i = 0; i < n; i += lanes<A>) body(i + lanes<A> <= n ? i : n - lanes<A>);
}

// The medians of n >= lanes windows of Size rows and columns, which are `step` apart, as floats.
// Returns whether a NaN was seen; the results are then worthless. `lines` has room for
// SortedColumns of n + Size * step values each.
template <class A, class F, int Size, class L>
POOLKIT_ONCE bool sliding_medians(const L* const* rows, int64_t step, int64_t n, A* lines, F* out) {
    const int64_t columns = n + (Size - 1) * step, room = n + Size * step;
    Watch<A> watch;
    const int64_t next = rows[Size - 1] - rows[Size - 2];
    each_columns<A>(columns, [&](int64_t i) {
        Vec<A> v[Size];
        __builtin_prefetch(rows[Size - 1] + next + i);  // what the next row of windows sees first
#pragma GCC unroll 5
        for (int r = 0; r < Size; ++r) {
            v[r] = load<A>(rows[r] + i);
            watch.nan(v[r], v[r]);
        }
        exchange_all<Ranking<Size, 0, Size - 1>>(v);
#pragma GCC unroll 5
        for (int r = 0; r < Size; ++r) store<A>(lines + r * room + i, v[r]);
    });
    if (is_float<A> && watch.found()) return true;
    const auto sorted = [&](int rank, int64_t i) { return load<A>(lines + rank * room + i); };
    const auto put = [&](int64_t i, Vec<A> median) {
        store_real<F, A>(out + i, median + Vec<A>{});
    };
    if constexpr (Size == 3) {
        // The largest of the smallest, the middle of the middles, the smallest of the largest
        // (Smith, "Implementing median filters in XC4000E FPGAs", 1996).
        each_columns<A>(n, [&](int64_t i) {
            const int64_t j = i + step, k = j + step;
            const Vec<A> low = larger(larger(sorted(0, i), sorted(0, j)), sorted(0, k));
            const Vec<A> middle = middle_of(sorted(1, i), sorted(1, j), sorted(1, k));
            const Vec<A> high = smaller(smaller(sorted(2, i), sorted(2, j)), sorted(2, k));
            put(i, middle_of(low, middle, high));
        });
    } else {
        A* pairs = lines + 5 * room;
        each_columns<A>(columns - step, [&](int64_t i) {
            Vec<A> v[10];
#pragma GCC unroll 5
            for (int r = 0; r < 5; ++r) v[r] = sorted(r, i), v[5 + r] = sorted(r, i + step);
            exchange_all<Merging<5, 0, 9>>(v);
#pragma GCC unroll 10
            for (int r = 0; r < 10; ++r)
                store<A>(pairs + r * room + i, v[Merging<5, 0, 9>::made.line[r]]);
        });
        each_columns<A>(n, [&](int64_t i) {
            using Pairs = Merging<10, 7, 12>;  // of 20 values, those that may be the 13th of 25
            Vec<A> v[20];
#pragma GCC unroll 10
            for (int r = 0; r < 10; ++r) {
                v[r] = load<A>(pairs + r * room + i);
                v[10 + r] = load<A>(pairs + r * room + i + 2 * step);
            }
            exchange_all<Pairs>(v);
            // 7 are smaller than the six that are left: the 6th of those and the last column. It
            // is the smallest over all shares of the larger of what both then end with.
            Vec<A> median = v[Pairs::made.line[12]];
#pragma GCC unroll 5
            for (int r = 0; r < 5; ++r)
                median = smaller(median,
                                 larger(v[Pairs::made.line[7 + r]], sorted(4 - r, i + 4 * step)));
            put(i, median);
        });
    }
    return false;
}

}  // namespace
