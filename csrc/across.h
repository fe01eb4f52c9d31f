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
template <class S>
struct OffsetLines {
    const S* base;
    const int64_t* offsets;
    POOLKIT_INLINE const S* operator[](int64_t i) const { return base + offsets[i]; }
    template <class A>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t j) const {
        return load<A>(base + offsets[i] + j);
    }
};
// Lines of fewer columns than lanes, with nothing readable behind them: the rest is the identity.
template <class R, class Lines>
struct ShortLines {
    const Lines& lines;
    int64_t columns;
    double p;
    template <class A>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t) const {
        return load_first<A>(lines[i], columns, broadcast<A>(blank<R, A>(p)));
    }
};

// Lines [lo, hi) merged at column j, U vectors wide. Lifts on load where the lines are input.
template <class R, class A, bool Lift, int U, class Lines>
POOLKIT_INLINE void merge_chain(const Lines& lines, int64_t lo, int64_t hi, int64_t j, double p,
                                Vec<A> (&result)[U]) {
    constexpr int n = lanes<A>;
    Vec<A> acc[U];  // in registers: the result may be anyone's memory
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
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) result[u] = acc[u];
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

template <class R, class A, bool Lift, int U, class Lines, class Put>
POOLKIT_INLINE void merge_columns(const Lines& lines, int64_t count, int64_t j, double p, Put put) {
    Vec<A> acc[U];
    if (R::idempotent || count <= kChain)
        merge_chain<R, A, Lift, U>(lines, 0, count, j, p, acc);
    else
        merge_tree<R, A, Lift, U>(lines, 0, count, j, p, acc);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) put(j + u * lanes<A>, acc[u]);
}

// put(j, lines[0][j] merged with lines[1][j], ...) for vectors of n columns, the last of which may
// have too many lanes. Exactly n elements of a line are touched.
template <class R, class A, bool Lift, class Lines, class Put>
POOLKIT_INLINE void across_to(const Lines& lines, int64_t count, int64_t n, double p, Put put) {
    constexpr int64_t width = lanes<A>;
    int64_t j = 0;
    if (count == 0) {
        for (; j < n; j += width) put(j, broadcast<A>(R::template identity<A>()));
        return;
    }
    for (; j + 4 * width <= n; j += 4 * width)
        merge_columns<R, A, Lift, 4>(lines, count, j, p, put);
    for (; j + width <= n; j += width) merge_columns<R, A, Lift, 1>(lines, count, j, p, put);
    if (j < n && n >= width) {  // again some columns that are done: same values
        merge_columns<R, A, Lift, 1>(lines, count, n - width, p, put);
        return;
    }
    if (j == n) return;
    if constexpr (Lift)
        merge_columns<R, A, Lift, 1>(ShortLines<R, Lines>{lines, n, p}, count, 0, p, put);
    else  // states: there is slack behind every line
        merge_columns<R, A, Lift, 1>(lines, count, 0, p, put);
}

// The first n - j lanes, at most all of them.
template <class A, class O>
POOLKIT_INLINE void store_upto(O* to, int64_t j, int64_t n, Vec<A> v) {
    if (j + lanes<A> <= n) {
        store<A>(to + j, v);
    } else if constexpr (same<A, O>) {
        store_first<A>(to + j, v, n - j);
    } else {
        O part[lanes<A>];
        store<A>(part, v);
        memcpy(to + j, part, (n - j) * sizeof(O));
    }
}

template <class R, class A, bool Lift, class Lines>
POOLKIT_ONCE void across(const Lines& lines, int64_t count, int64_t n, double p, A* out) {
    across_to<R, A, Lift>(lines, count, n, p,
                          [&](int64_t j, Vec<A> v) { store_upto<A>(out, j, n, v); });
}

// The same where a vector may be written behind the last column: what is there is the identity.
template <class R, class A, bool Lift, class Lines>
POOLKIT_ONCE void across_padded(const Lines& lines, int64_t count, int64_t n, double p, A* out) {
    across_to<R, A, Lift>(lines, count, n, p, [&](int64_t j, Vec<A> v) { store<A>(out + j, v); });
}

// The same for windows of any kind down lines that are `apart`: a row for each of `outputs`.
// Columns are walked U vectors wide from the first window to the last: lines are often short.
template <class R, class A, bool Lift, int U, bool Short, class S>
POOLKIT_ONCE void across_rows_at(const S* base, int64_t apart, const int64_t* begin,
                                 const int64_t* count, int64_t step, int64_t outputs, int64_t j,
                                 int64_t n, double p, A* out, int64_t pitch) {
    const auto put = [&](int64_t i, Vec<A> v) { store<A>(out + i, v); };
    for (int64_t o = 0; o < outputs; ++o, out += pitch) {
        const StridedLines<S> lines{base + begin[o] * apart, step * apart};
        if (count[o] == 0)
            for (int u = 0; u < U; ++u)
                put(j + u * lanes<A>, broadcast<A>(R::template identity<A>()));
        else if constexpr (Short)
            merge_columns<R, A, Lift, U>(ShortLines<R, StridedLines<S>>{lines, n, p}, count[o], j,
                                         p, put);
        else
            merge_columns<R, A, Lift, U>(lines, count[o], j, p, put);
    }
}

template <class R, class A, bool Lift, class S>
POOLKIT_INLINE void across_rows(const S* base, int64_t apart, const int64_t* begin,
                                const int64_t* count, int64_t step, int64_t outputs, int64_t n,
                                double p, A* out, int64_t pitch) {
    constexpr int64_t width = lanes<A>;
    const auto at = [&](auto u, auto is_short, int64_t j) {
        across_rows_at<R, A, Lift, u.value, is_short.value>(base, apart, begin, count, step,
                                                            outputs, j, n, p, out, pitch);
    };
    int64_t j = 0;
    for (; j + 4 * width <= n; j += 4 * width) at(Constant<4>{}, Constant<0>{}, j);
    for (; j + width <= n; j += width) at(Constant<1>{}, Constant<0>{}, j);
    if (j < n && n >= width)
        at(Constant<1>{}, Constant<0>{}, n - width);
    else if (j < n)
        at(Constant<1>{}, Constant<1>{}, 0);
}

// The same with positions. Line i adds i * radix to the codes it brings; without codes they are 0.
template <class R, class A, class Lines>
POOLKIT_ONCE void across_positions(const Lines& lines, const Code<A>* const* codes, int64_t count,
                                   int64_t radix, int64_t n, A* out, Code<A>* out_codes) {
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

// --- windows down lines ------------------------------------------------------------------------

// What was pushed N pushes ago.
template <class V, int N>
struct Delay {
    V v[N]{};
    template <int I = N - 1>
    POOLKIT_INLINE V push(V x) {
        const V old = v[I];
        if constexpr (I > 0)
            v[I] = v[I - 1], push<I - 1>(x);
        else
            v[0] = x;
        return old;
    }
};

// The last K values pushed, merged. Maxima of 1, 2, 4, ... neighbours are made of two of half the
// size, and a window of two that overlap: 13 values cost four merges. Sums are added one by one.
template <class R, class V, int K, int W = 1>
struct Ladder {
    Delay<V, W> half;
    Ladder<R, V, K, 2 * W> rest;
    POOLKIT_INLINE V push(V x) { return rest.push(R::merge(half.push(x), x)); }
};
template <class R, class V, int K, int W>
    requires(2 * W > K && K > W)
struct Ladder<R, V, K, W> {
    Delay<V, K - W> half;
    POOLKIT_INLINE V push(V x) { return R::merge(half.push(x), x); }
};
template <class R, class V, int K>
struct Ladder<R, V, K, K> {
    POOLKIT_INLINE V push(V x) { return x; }
};
template <class R, class V, int K>
struct Chain {
    V past[K - 1]{};  // the oldest first
    template <int I = 1>
    POOLKIT_INLINE V merged(V acc, V x) {
        if constexpr (I < K - 1) {
            const V next = past[I];
            past[I - 1] = next;
            return merged<I + 1>(R::merge(acc, next), x);
        } else {
            past[K - 2] = x;
            return R::merge(acc, x);
        }
    }
    POOLKIT_INLINE V push(V x) { return merged(past[0], x); }
};

// Column j of windows of K lines, Stride apart: each line is read once, and what later windows see
// of it stays in registers.
template <class R, class A, bool Lift, int K, int Stride, class Lines>
POOLKIT_INLINE void slide_column(const Lines& lines, int64_t outputs, int64_t j, double p, A* out,
                                 int64_t pitch) {
    const auto line = [&](int64_t i) {
        const Vec<A> v = lines.template at<A>(i, j);
        return Lift ? R::lift(v, p) : v;
    };
    if constexpr (Stride == 1) {
        typename Choose<R::idempotent, Ladder<R, Vec<A>, K>, Chain<R, Vec<A>, K>>::type window;
        for (int64_t i = 0; i < K - 1; ++i) window.push(line(i));
        for (int64_t o = 0; o < outputs; ++o)
            store<A>(out + o * pitch + j, window.push(line(o + K - 1)));
    } else if constexpr (Stride < K) {
        static_assert(Stride == K - 1);
        Vec<A> shared = line(0);
        for (int64_t o = 0; o < outputs; ++o) {
            Vec<A> acc = shared;
#pragma GCC unroll 4
            for (int t = 1; t < K; ++t) acc = R::merge(acc, shared = line(o * Stride + t));
            store<A>(out + o * pitch + j, acc);
        }
    } else {
        for (int64_t o = 0; o < outputs; ++o) {
            Vec<A> acc = line(o * Stride);
#pragma GCC unroll 8
            for (int t = 1; t < K; ++t) acc = R::merge(acc, line(o * Stride + t));
            store<A>(out + o * pitch + j, acc);
        }
    }
}

// out[o * pitch + j] = lines[o * Stride .. o * Stride + K)[j] merged, n columns; where that is less
// than a vector, the identity behind them.
template <class R, class A, bool Lift, int K, int Stride, class Lines>
POOLKIT_ONCE void slide(const Lines& lines, int64_t outputs, int64_t n, double p, A* out,
                        int64_t pitch) {
    constexpr int64_t width = lanes<A>;
    int64_t j = 0;
    for (; j + width <= n; j += width)
        slide_column<R, A, Lift, K, Stride>(lines, outputs, j, p, out, pitch);
    if (j < n && n >= width)
        slide_column<R, A, Lift, K, Stride>(lines, outputs, n - width, p, out, pitch);
    else if (j < n)
        slide_column<R, A, Lift, K, Stride>(ShortLines<R, Lines>{lines, n, p}, outputs, 0, p, out,
                                            pitch);
}

}  // namespace
