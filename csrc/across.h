// Reducing windows along an axis that is not the fastest in memory: whole lines are merged, lane by
// lane.
#pragma once

#include "loops.h"

namespace {

// A chain of n additions loses precision as n, a tree as log n: sums of more lines than this are
// split in two.
constexpr int64_t kChain = 32;

// The lines that are merged: at a fixed distance, or anywhere.
template <class S>
struct StridedLines {
    const S* base;
    int64_t stride;
    POOLKIT_INLINE const S* operator[](int64_t i) const { return base + i * stride; }
    template <class A>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t j) const {
        return load<A>(base + i * stride + j);
    }
};
template <class S>
struct ListedLines {
    const S* const* lines;
    POOLKIT_INLINE const S* operator[](int64_t i) const { return lines[i]; }
    template <class A>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t j) const {
        return load<A>(lines[i] + j);
    }
};
// Lines of fewer columns than lanes, with nothing readable behind them.
template <class Lines>
struct ShortLines {
    const Lines& lines;
    int64_t columns;
    template <class A>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t) const {
        return load_first<A>(lines[i], columns, Vec<A>{});
    }
};

// Lines [lo, hi) merged at column j, U vectors wide. Lifts on load where the lines are input.
template <class R, class A, bool Lift, int U, class Lines>
POOLKIT_INLINE void merge_chain(const Lines& lines, int64_t lo, int64_t hi, int64_t j, double p,
                                Vec<A> (&acc)[U]) {
    constexpr int n = lanes<A>;
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
        const Vec<A> v = lines.template at<A>(lo, j + u * n);
        acc[u] = Lift ? R::lift(v, p) : v;
    }
    for (int64_t i = lo + 1; i < hi; ++i) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
            const Vec<A> v = lines.template at<A>(i, j + u * n);
            acc[u] = R::merge(acc[u], Lift ? R::lift(v, p) : v);
        }
    }
}

template <class R, class A, bool Lift, int U, class Lines>
POOLKIT_ONCE void merge_tree(const Lines& lines, int64_t lo, int64_t hi, int64_t j, double p,
                             Vec<A> (&acc)[U]) {
    if (R::idempotent || hi - lo <= kChain) {
        merge_chain<R, A, Lift, U>(lines, lo, hi, j, p, acc);
        return;
    }
    const int64_t middle = lo + round_up((hi - lo) / 2, kChain);
    Vec<A> rest[U];
    merge_tree<R, A, Lift, U>(lines, lo, middle, j, p, acc);
    merge_tree<R, A, Lift, U>(lines, middle, hi, j, p, rest);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) acc[u] = R::merge(acc[u], rest[u]);
}

template <class R, class A, bool Lift, int U, class Lines>
POOLKIT_INLINE void merge_columns(const Lines& lines, int64_t count, int64_t j, double p, A* out) {
    Vec<A> acc[U];
    if (R::idempotent || count <= kChain)
        merge_chain<R, A, Lift, U>(lines, 0, count, j, p, acc);
    else
        merge_tree<R, A, Lift, U>(lines, 0, count, j, p, acc);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) store<A>(out + j + u * lanes<A>, acc[u]);
}

// out[j] = lines[0][j] merged with lines[1][j], ...; n columns. Exactly n elements are touched.
template <class R, class A, bool Lift, class S, template <class> class Lines>
POOLKIT_ONCE void across(const Lines<S>& lines, int64_t count, int64_t n, double p, A* out) {
    constexpr int64_t width = lanes<A>;
    if (count == 0) {
        for (int64_t j = 0; j < n; ++j) out[j] = R::template identity<A>();
        return;
    }
    int64_t j = 0;
    with_taps(count, [&](auto known) {
        for (; j + 4 * width <= n; j += 4 * width)
            merge_columns<R, A, Lift, 4>(lines, known, j, p, out);
        for (; j + width <= n; j += width) merge_columns<R, A, Lift, 1>(lines, known, j, p, out);
        if (j < n && n >= width) {  // again some columns that are done: same values
            merge_columns<R, A, Lift, 1>(lines, known, n - width, p, out);
            j = n;
        }
    });
    if (j == n) return;
    Vec<A> acc[1];
    if constexpr (Lift)
        merge_tree<R, A, Lift, 1>(ShortLines<Lines<S>>{lines, n}, 0, count, 0, p, acc);
    else  // states: there is slack behind every line
        merge_tree<R, A, Lift, 1>(lines, 0, count, 0, p, acc);
    store_first<A>(out, acc[0], n);
}

// The same with positions. Line i adds i * radix to the codes it brings; without codes they are 0.
template <class R, class A, class S, template <class> class Lines>
POOLKIT_ONCE void across_positions(const Lines<S>& lines, const Code<A>* const* codes,
                                   int64_t count, int64_t radix, int64_t n, A* out,
                                   Code<A>* out_codes) {
    constexpr int64_t width = lanes<A>;
    using C = Code<A>;
    int64_t j = 0;
    const auto step = [&](int64_t at, A* to, C* to_codes) {
        Vec<A> best = load<A>(lines[0] + at);
        Vec<C> code = codes ? load<C>(codes[0] + at) : Vec<C>{};
        for (int64_t i = 1; i < count; ++i) {
            const Vec<A> v = load<A>(lines[i] + at);
            Vec<C> c = broadcast<C>(static_cast<C>(i * radix));
            if (codes) c += load<C>(codes[i] + at);
            const auto taken = R::replaces(best, v);
            best = taken ? v : best;
            code = taken ? c : code;
        }
        store<A>(to, best);
        store<C>(to_codes, code);
    };
    for (; j + width <= n; j += width) step(j, out + j, out_codes + j);
    if (j < n && n >= width) {
        step(n - width, out + n - width, out_codes + n - width);
        return;
    }
    if (j < n && codes) {  // states: there is slack behind every line
        A tail[lanes<A>];
        C tail_codes[lanes<A>];
        step(j, tail, tail_codes);
        memcpy(out, tail, n * sizeof(A));
        memcpy(out_codes, tail_codes, n * sizeof(C));
        return;
    }
    for (; j < n; ++j) {
        A best = static_cast<A>(widen(lines[0][j]));
        C code = codes ? codes[0][j] : C(0);
        for (int64_t i = 1; i < count; ++i) {
            const A v = static_cast<A>(widen(lines[i][j]));
            if (R::replaces(best, v)) {
                best = v;
                code = static_cast<C>(i * radix + (codes ? codes[i][j] : C(0)));
            }
        }
        out[j] = best;
        out_codes[j] = code;
    }
}

}  // namespace
