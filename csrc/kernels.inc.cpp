// The loops. Compiled once per instruction set with POOLKIT_ISA set to its name; see lanes.h for
// why everything is in an anonymous namespace.
//
// Pooling is separable. There is one idea, reduce windows along one axis of (outer, axis, inner),
// in two forms:
//
//   across  the axis is not the fastest in memory: whole lines are merged, lane by lane;
//   within  the axis is contiguous: windows along one line.
//
// A 2-D window reduces each input row once with `within`, keeps as many of the results in a ring
// as a window sees rows, and merges them with `across`: the intermediate never leaves the L1
// cache. Doing the fastest axis first also makes "the first of equal values in row-major order
// wins" a matter of merging in order.
//
// Results have the same bits on every instruction set: lanes of a vector are separate outputs,
// and where one output is summed by several lanes, their number is that of 64 bytes everywhere.

#include "kernels.h"
#include "reductions.h"
#include "registry.def"

namespace {

using poolkit::Axis;
using poolkit::Geometry;
using poolkit::kMaxAxes;
using poolkit::Part;

// A chain of n additions loses precision as n, a tree as log n: sums of more lines than this are
// split in two.
constexpr int64_t kChain = 32;
// Windows of at least this many neighbouring positions are reduced by doubling (see `within`).
constexpr int64_t kDoubling = 6;
// Longer contiguous windows are folded one by one, lanes first.
constexpr int64_t kLongSpan = 24;
// A line of a single long axis is cut into tasks of this many outputs.
constexpr int64_t kLineChunk = 4096;
// Channels-last windows of up to this many positions merge all their pixels at once.
constexpr int64_t kDirectTaps = 16;
constexpr int64_t kMaxDirectTaps = 4096;

// Rows of up to this many outputs that tile without a rest are joined to lines about as long:
// 2x2 on rows of 14 takes a third of the time, on rows of 112 two thirds.
constexpr int64_t kJoinedRow = 256;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t power_of_two(int64_t at_least) {
    int64_t power = 1;
    while (power < at_least) power *= 2;
    return power;
}

template <class T>
POOLKIT_INLINE T at_most(T a, T b) { return b < a ? b : a; }

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
    POOLKIT_INLINE operator int64_t() const { return N; }
};
template <class Body>
POOLKIT_INLINE void with_taps(int64_t taps, Body body) {
    if (taps == 2) body(Constant<2>{});
    else if (taps == 3) body(Constant<3>{});
    else if (taps == 5) body(Constant<5>{});
    else body(taps);
}

// --- across -------------------------------------------------------------------------------------

// The lines that are merged: at a fixed distance, or anywhere.
template <class S>
struct StridedLines {
    const S* base;
    int64_t stride;
    POOLKIT_INLINE const S* operator[](int64_t i) const { return base + i * stride; }
};
template <class S>
struct ListedLines {
    const S* const* lines;
    POOLKIT_INLINE const S* operator[](int64_t i) const { return lines[i]; }
};

// Lines [lo, hi) merged at column j, U vectors wide. Lifts on load where the lines are input.
template <class R, class A, bool Lift, int U, class Lines>
POOLKIT_INLINE void merge_chain(const Lines& lines, int64_t lo, int64_t hi, int64_t j, double p,
                                Vec<A> (&acc)[U]) {
    constexpr int n = lanes<A>;
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
        const Vec<A> v = load<A>(lines[lo] + j + u * n);
        acc[u] = Lift ? R::lift(v, p) : v;
    }
    for (int64_t i = lo + 1; i < hi; ++i) {
        const auto* line = lines[i] + j;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
            const Vec<A> v = load<A>(line + u * n);
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
    if (R::idempotent || count <= kChain) merge_chain<R, A, Lift, U>(lines, 0, count, j, p, acc);
    else merge_tree<R, A, Lift, U>(lines, 0, count, j, p, acc);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) store<A>(out + j + u * lanes<A>, acc[u]);
}

// One column, merged in the order of merge_tree.
template <class R, class A, class Lines>
A merge_one(const Lines& lines, int64_t lo, int64_t hi, int64_t j, double p) {
    if (R::idempotent || hi - lo <= kChain) {
        A acc = R::lift(static_cast<A>(widen(lines[lo][j])), p);
        for (int64_t i = lo + 1; i < hi; ++i)
            acc = R::merge(acc, R::lift(static_cast<A>(widen(lines[i][j])), p));
        return acc;
    }
    const int64_t middle = lo + round_up((hi - lo) / 2, kChain);
    const A first = merge_one<R, A>(lines, lo, middle, j, p);
    return R::merge(first, merge_one<R, A>(lines, middle, hi, j, p));
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
    if constexpr (!Lift) {  // states: there is slack behind every line
        Vec<A> acc[1];
        merge_tree<R, A, Lift, 1>(lines, 0, count, 0, p, acc);
        store_first<A>(out, acc[0], n);
    } else {
        for (; j < n; ++j) out[j] = merge_one<R, A>(lines, 0, count, j, p);
    }
}

// The same with positions. Line i adds i * radix to the codes it brings; without codes they are 0.
template <class R, class A, class S, template <class> class Lines>
POOLKIT_ONCE void across_positions(const Lines<S>& lines, const Code<A>* const* codes, int64_t count,
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

// --- within -------------------------------------------------------------------------------------

// 64 bytes of lanes, whatever the machine's vector is.
template <class A>
struct Wide {
    static constexpr int parts = 64 / kVectorBytes;
    static constexpr int64_t width = 64 / sizeof(A);
    Vec<A> v[parts];
};

template <class R, class A, class S>
POOLKIT_INLINE Wide<A> load_wide(const S* from, double p) {
    Wide<A> wide;
#pragma GCC unroll 4
    for (int i = 0; i < Wide<A>::parts; ++i)
        wide.v[i] = R::lift(load<A>(from + i * lanes<A>), p);
    return wide;
}

template <class R, class A>
POOLKIT_INLINE void merge_wide(Wide<A>& a, const Wide<A>& b) {
#pragma GCC unroll 4
    for (int i = 0; i < Wide<A>::parts; ++i) a.v[i] = R::merge(a.v[i], b.v[i]);
}

// A chain of up to kChain wides, then a tree of chains.
template <class R, class A, class S>
POOLKIT_ONCE Wide<A> fold_wides(const S* from, int64_t wides, double p) {
    constexpr int64_t width = Wide<A>::width;
    if (wides <= kChain) {
        Wide<A> acc = load_wide<R, A>(from, p);
        for (int64_t i = 1; i < wides; ++i) merge_wide<R>(acc, load_wide<R, A>(from + i * width, p));
        return acc;
    }
    const int64_t first = round_up(wides / 2, kChain);
    Wide<A> acc = fold_wides<R, A>(from, first, p);
    merge_wide<R>(acc, fold_wides<R, A>(from + first * width, wides - first, p));
    return acc;
}

// n contiguous values in the lanes of one vector: all but the last step of folding them.
template <class R, class A, class S>
POOLKIT_INLINE Vec<A> fold_to_lanes(const S* from, int64_t n, double p) {
    constexpr int64_t width = Wide<A>::width;
    const int64_t whole = n / width, rest = n % width;
    Wide<A> acc{};
    if (whole > 0) acc = fold_wides<R, A>(from, whole, p);
    if (rest > 0) {
        A padded[width];
        for (int64_t i = 0; i < width; ++i)
            padded[i] = i < rest ? R::lift(static_cast<A>(widen(from[whole * width + i])), p)
                                 : R::template identity<A>();
        Wide<A> last;
        memcpy(&last, padded, sizeof last);
        if (whole > 0) merge_wide<R>(acc, last);
        else acc = last;
    }
    // Lanes half a width apart are merged, down to the machine's vector.
    for (int parts = Wide<A>::parts; parts > 1; parts /= 2)
        for (int i = 0; i < parts / 2; ++i) acc.v[i] = R::merge(acc.v[i], acc.v[i + parts / 2]);
    return acc.v[0];
}

// Merges the lanes of each of `lanes` vectors, halves first: lane i of the result is vector i's.
template <class R, class A, int Width = lanes<A>>
POOLKIT_INLINE Vec<A> fold_lanes(Vec<A>* v) {
    if constexpr (Width == 1) {
        return v[0];
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < Width / 2; ++i) {
            const Vec<A> first = halves_of<Width, false>(v[2 * i], v[2 * i + 1], Upto<lanes<A>>{});
            const Vec<A> second = halves_of<Width, true>(v[2 * i], v[2 * i + 1], Upto<lanes<A>>{});
            v[i] = R::merge(first, second);
        }
        return fold_lanes<R, A, Width / 2>(v);
    }
}

template <class R, class A>
POOLKIT_INLINE A fold_lanes_of_one(Vec<A> v) {
    A lane[lanes<A>];
    memcpy(lane, &v, sizeof v);
    for (int width = lanes<A>; width > 1; width /= 2)
        for (int i = 0; i < width / 2; ++i) lane[i] = R::merge(lane[i], lane[i + width / 2]);
    return lane[0];
}

// Lanes see values out of order, which shows in one case only: the sign of a zero extreme.
template <class A, class S>
A first_zero(const S* from, int64_t n, A zero) {
    for (int64_t i = 0; i < n; ++i)
        if (widen(from[i]) == zero) return static_cast<A>(widen(from[i]));
    return zero;
}

// One contiguous window.
template <class R, class A, class S>
POOLKIT_ONCE A fold_span(const S* from, int64_t n, int64_t step, double p) {
    if (n == 0) return R::template identity<A>();
    if (step != 1 || n <= 8) {
        A acc = R::lift(static_cast<A>(widen(from[0])), p);
        for (int64_t i = 1; i < n; ++i)
            acc = R::merge(acc, R::lift(static_cast<A>(widen(from[i * step])), p));
        return acc;
    }
    const A value = fold_lanes_of_one<R, A>(fold_to_lanes<R, A>(from, n, p));
    if constexpr (R::positions && is_float<S>)
        if (value == A(0)) return first_zero(from, n, value);
    return value;
}

// Where `value`, the extreme of the window, is found: the first equal one, or the last NaN.
template <class A, class S>
int64_t find_in_span(const S* from, int64_t n, int64_t step, A value) {
    if (value != value) {
        for (int64_t i = n - 1; i > 0; --i)
            if (widen(from[i * step]) != widen(from[i * step])) return i;
        return 0;
    }
    constexpr int64_t block = 64;
    int64_t i = 0;
    if (step == 1) {
        for (; i + block <= n; i += block) {  // whole blocks without a branch inside
            bool any = false;
            for (int64_t k = 0; k < block; ++k) any |= static_cast<A>(widen(from[i + k])) == value;
            if (any) break;
        }
    }
    for (; i < n; ++i)
        if (static_cast<A>(widen(from[i * step])) == value) return i;
    return 0;
}

// What outputs [o0, o1) of a regular axis see of a line: `reach` positions from `start` on, of
// which `before` lie in front of the line and `inside` on it.
struct Extent {
    int64_t start, reach, before, inside;
};

POOLKIT_INLINE Extent extent_of(const Axis& axis, int64_t o0, int64_t o1) {
    Extent e;
    e.start = o0 * axis.stride + axis.offset;
    e.reach = (o1 - 1 - o0) * axis.stride + (axis.taps - 1) * axis.step + 1;
    e.before = e.start < 0 ? at_most(-e.start, e.reach) : 0;
    const int64_t inside = at_most(axis.size - e.start, e.reach) - e.before;
    e.inside = inside > 0 ? inside : 0;
    return e;
}

// Lines without a NaN, which are nearly all, are merged without looking for one.
template <class R, class S>
constexpr bool scans = R::positions && is_float<S>;
template <class R, class S>
using Quick = typename Choose<scans<R, S>, NoNaN<R>, R>::type;

template <class A>
POOLKIT_INLINE auto unordered(Vec<A> a, Vec<A> b) {
    return (a != a) | (b != b);
}

// Whether there is a NaN among n values.
template <class A>
POOLKIT_INLINE bool has_nan(const A* from, int64_t n) {
    constexpr int64_t width = lanes<A>;
    if (n < width) {
        const Vec<A> v = load_first<A>(from, n, Vec<A>{});
        return any(v != v);
    }
    auto found = Vec<A>{} != Vec<A>{};
    int64_t i = 0;
    for (; i + 2 * width <= n; i += 2 * width)
        found |= unordered<A>(load<A>(from + i), load<A>(from + i + width));
    if (i < n) {
        const int64_t last = n - width;
        found |= unordered<A>(load<A>(from + at_most(i, last)), load<A>(from + last));
    }
    return any(found);
}

// The lifted inputs of an extent as one contiguous array of A in which no window is clipped, with
// two vectors of slack. Sets `found` if there is a NaN, where that matters.
template <class R, class A, class S>
POOLKIT_INLINE const A* copy_line(const S* line, const Extent& e, double p, A* buffer, bool& found) {
    // Vectors throughout, each running into what the next loop writes: a line is often short.
    constexpr int64_t width = lanes<A>;
    const Vec<A> nothing = broadcast<A>(R::template identity<A>());
    auto unordered = nothing != nothing;
    for (int64_t i = 0; i < e.before; i += width) store<A>(buffer + i, nothing);
    const S* from = line + e.start + e.before;
    A* to = buffer + e.before;
    const auto copy = [&](int64_t i) {
        const Vec<A> v = load<A>(from + i);
        if constexpr (scans<R, S>) unordered |= v != v;
        store<A>(to + i, R::lift(v, p));
    };
    int64_t i = 0;
    for (; i + width <= e.inside; i += width) copy(i);
    if (i < e.inside && e.inside >= width) {
        copy(e.inside - width);
    } else if (i < e.inside) {
        const Vec<A> v = load_first<A>(from, e.inside, nothing);
        if constexpr (scans<R, S>) unordered |= v != v;
        if constexpr (scans<R, S> || R::plain) {
            store<A>(to, v);
        } else {
            for (; i < e.inside; ++i) to[i] = R::lift(v[i], p);
        }
    }
    for (i = e.before + e.inside; i < e.reach + 2 * width; i += width) store<A>(buffer + i, nothing);
    found = any(unordered);
    return buffer;
}

// Elements that `windowed_line` may need for `outputs` outputs; doubling reads a window further.
template <class A>
int64_t windowed_room(const Axis& axis, int64_t outputs) {
    if (!axis.regular) return 0;
    return outputs * axis.stride + 2 * axis.taps * axis.step + 4 * lanes<A>;
}

// Stride 1, any number of taps, at the cost of log2(taps): sums (or maxima) of 1, 2, 4, ...
// neighbours are built in place, and a window is put together from them. Nothing is subtracted,
// so nothing cancels, and the sum is a tree.
template <class R, class A>
POOLKIT_ONCE void within_doubling(A* line, int64_t outputs, int64_t taps, int64_t step, A* out) {
    const int64_t n = outputs + (taps - 1) * step;  // inputs
    int64_t width = 1, done = 0;
    bool started = false;
    const auto merge_into = [&](const A* from) {
        for (int64_t i = 0; i < outputs; i += lanes<A>) {
            const Vec<A> v = load<A>(from + i);
            store<A>(out + i, started ? R::merge(load<A>(out + i), v) : v);
        }
        started = true;
    };
    while (true) {
        if constexpr (!R::idempotent) {
            if (taps & width) {
                merge_into(line + done * step);
                done += width;
            }
        }
        if (2 * width > taps) break;
        for (int64_t i = 0; i < n; i += lanes<A>)
            store<A>(line + i, R::merge(load<A>(line + i), load<A>(line + i + width * step)));
        width *= 2;
    }
    if constexpr (R::idempotent) {  // two windows of `width` that overlap
        merge_into(line);
        if (width < taps) merge_into(line + (taps - width) * step);
    }
}

template <class A>
POOLKIT_INLINE void even_odd(const A* from, Vec<A>& evens, Vec<A>& odds) {
    const Vec<A> a = load<A>(from), b = load<A>(from + lanes<A>);
    evens = even<A>(a, b);
    odds = odd<A>(a, b);
}

// Taps of stride 2 come in pairs out of two loads. A last tap without a partner is the even one of
// the pair before it, one output on, so that no load reaches beyond the last input.
template <class R, class A>
POOLKIT_INLINE Vec<A> pairs_at(const A* from, int64_t taps) {
    Vec<A> evens, odds;
    even_odd<A>(from, evens, odds);
    if (taps == 1) return evens;
    Vec<A> acc = R::merge(evens, odds);
    int64_t t = 2;
    for (; t + 2 <= taps; t += 2) {
        even_odd<A>(from + t, evens, odds);
        acc = R::merge(R::merge(acc, evens), odds);
    }
    if (t < taps) acc = R::merge(acc, next_lanes<A>(evens, broadcast<A>(from[t + 2 * (lanes<A> - 1)])));
    return acc;
}

// Calls body(i) for vectors of outputs that cover [0, n): the last one is moved back to end at n,
// or, where there are fewer outputs than lanes, runs into the slack behind the arrays.
template <class A, class Body>
POOLKIT_INLINE void each_vector(int64_t n, Body body) {
    constexpr int64_t width = lanes<A>;
    int64_t i = 0;
    for (; i + width <= n; i += width) body(i);
    if (i < n) body(n >= width ? n - width : 0);
}

// n windows none of which is clipped, from lifted values.
template <class R, class A>
POOLKIT_INLINE void unclipped(const Axis& axis, const A* from, int64_t n, A* out) {
    const int64_t stride = axis.stride, step = axis.step;
    if (stride == 1) {
        with_taps(axis.taps, [&](auto taps) {
            each_vector<A>(n, [&](int64_t i) {
                Vec<A> acc = load<A>(from + i);
                for (int64_t t = 1; t < taps; ++t) acc = R::merge(acc, load<A>(from + i + t * step));
                store<A>(out + i, acc);
            });
        });
    } else if (stride == 2 && step == 1) {
        with_taps(axis.taps, [&](auto taps) {
            each_vector<A>(n, [&](int64_t i) { store<A>(out + i, pairs_at<R, A>(from + 2 * i, taps)); });
        });
    } else {
        for (int64_t i = 0; i < n; ++i) out[i] = from[i * stride];
        for (int64_t t = 1; t < axis.taps; ++t)
            for (int64_t i = 0; i < n; ++i)
                out[i] = R::merge(out[i], from[i * stride + t * step]);
    }
}

// out[o - o0] = the window of output o along one line. `out` has a vector of slack behind it.
// Returns whether there may be a NaN among them.
template <class R, class A, class S>
POOLKIT_ONCE bool within(const Axis& axis, const S* line, int64_t o0, int64_t o1, const Extent& e, double p,
            A* buffer, A* out) {
    const bool doubling = axis.stride == 1 && axis.taps >= kDoubling;
    if (!axis.regular || (axis.taps > kLongSpan && !doubling)) {
        for (int64_t o = o0; o < o1; ++o)
            out[o - o0] = fold_span<R, A>(line + axis.begin[o], axis.count[o], axis.step, p);
        return scans<R, S>;
    }
    if constexpr (same<A, S> && R::plain) {
        // Where no more than two windows are clipped, the others are read in place, and those are
        // merged one by one, in the order of the vectors.
        const int64_t lo = o0 > axis.full_begin ? o0 : axis.full_begin, hi = at_most(o1, axis.full_end);
        if (!doubling && hi - lo >= lanes<A> && lo - o0 + o1 - hi <= 2) {
            const auto one = [&](int64_t o) {
                const A* at = line + axis.begin[o];
                A acc = axis.count[o] ? at[0] : R::template identity<A>();
                for (int64_t t = 1; t < axis.count[o]; ++t) acc = R::merge(acc, at[t * axis.step]);
                out[o - o0] = acc;
            };
            const A* from = line + lo * axis.stride + axis.offset;
            bool found = false;
            if constexpr (scans<R, S>) found = has_nan(line + e.start + e.before, e.inside);
            for (int64_t o = o0; o < lo; ++o) one(o);
            if (found) unclipped<R, A>(axis, from, hi - lo, out + (lo - o0));
            else unclipped<Quick<R, S>, A>(axis, from, hi - lo, out + (lo - o0));
            for (int64_t o = hi; o < o1; ++o) one(o);
            return found;
        }
    }
    bool found = false;
    copy_line<R, A>(line, e, p, buffer, found);
    if (doubling) {
        if (found) within_doubling<R, A>(buffer, o1 - o0, axis.taps, axis.step, out);
        else within_doubling<Quick<R, S>, A>(buffer, o1 - o0, axis.taps, axis.step, out);
    } else {
        if (found) unclipped<R, A>(axis, buffer, o1 - o0, out);
        else unclipped<Quick<R, S>, A>(axis, buffer, o1 - o0, out);
    }
    return found;
}

// The same with positions: the tap within the clipped window.
template <class R, class A, class S>
POOLKIT_ONCE void within_positions(const Axis& axis, const S* line, int64_t o0, int64_t o1, A* out,
                      Code<A>* codes) {
    using C = Code<A>;
    constexpr int64_t width = lanes<A>;
    const int64_t step = axis.step;
    const auto one = [&](int64_t o) {
        const S* from = line + axis.begin[o];
        const int64_t n = axis.count[o];
        if (n > 8 && step == 1) {
            const A value = fold_span<R, A>(from, n, 1, 0.0);
            out[o - o0] = value;
            codes[o - o0] = static_cast<C>(find_in_span<A>(from, n, 1, value));
            return;
        }
        A best = static_cast<A>(widen(from[0]));
        C code = 0;
        for (int64_t t = 1; t < n; ++t) {
            const A v = static_cast<A>(widen(from[t * step]));
            const bool taken = R::replaces(best, v);
            best = taken ? v : best;
            code = taken ? static_cast<C>(t) : code;
        }
        out[o - o0] = best;
        codes[o - o0] = code;
    };
    const bool pairs = axis.stride == 2 && step == 1 && axis.taps >= 2;
    const bool vector = axis.regular && axis.taps <= kLongSpan && (axis.stride == 1 || pairs);
    int64_t lo = axis.full_begin > o0 ? axis.full_begin : o0;
    const int64_t hi = at_most(axis.full_end, o1);
    if (!vector || hi - lo < width) {
        for (int64_t o = o0; o < o1; ++o) one(o);
        return;
    }
    for (int64_t o = o0; o < lo; ++o) one(o);
    for (int64_t o = hi; o < o1; ++o) one(o);
    const S* start = line + axis.offset;
    for (;; lo = at_most(lo + width, hi - width)) {
        const S* from = start + lo * axis.stride;
        Vec<A> best;
        Vec<C> code{};
        const auto offer = [&](Vec<A> v, int64_t tap) {
            const auto taken = R::replaces(best, v);
            best = taken ? v : best;
            code = taken ? broadcast<C>(static_cast<C>(tap)) : code;
        };
        if (axis.stride == 1) {
            best = load<A>(from);
            for (int64_t t = 1; t < axis.taps; ++t) offer(load<A>(from + t * step), t);
        } else {
            const auto split = [&](const S* at, Vec<A>& evens, Vec<A>& odds) {
                const Vec<A> a = load<A>(at), b = load<A>(at + width);
                evens = even<A>(a, b);
                odds = odd<A>(a, b);
            };
            Vec<A> evens, odds;
            split(from, evens, odds);
            best = evens;
            offer(odds, 1);
            int64_t t = 2;
            for (; t + 2 <= axis.taps; t += 2) {
                split(from + t, evens, odds);
                offer(evens, t);
                offer(odds, t + 1);
            }
            if (t < axis.taps) {
                split(from + t - 1, evens, odds);
                offer(odds, t);
            }
        }
        store<A>(out + lo - o0, best);
        store<C>(codes + lo - o0, code);
        if (lo == hi - width) return;
    }
}

// --- results ------------------------------------------------------------------------------------

// A line of states becomes results: divided (one row's divisor, one for each column), finished,
// narrowed.
template <class R, class A, class O>
POOLKIT_ONCE void finish_line(const A* state, int64_t n, double row, const double* columns,
                                bool uniform, double p, O* out) {
    const auto one = [&](A x, double divisor) -> O {
        if constexpr (same<A, int64_t> && same<O, float>)
            return static_cast<float>(static_cast<double>(x) / divisor);
        else if constexpr (R::positions || same<A, int64_t>) return narrow<O>(x);
        else return narrow<O>(R::finish(divisor == 1.0 ? x : static_cast<A>(x / static_cast<A>(divisor)), p));
    };
    int64_t j = 0;
    if (columns && !uniform) {
        for (; j < n; ++j) out[j] = one(state[j], row * columns[j]);
        return;
    }
    const double divisor = columns ? row * columns[0] : row;
    if constexpr (!same<A, int64_t> && !same<R, SumSquare> && !same<R, SumPower>) {
        const Vec<A> by = broadcast<A>(static_cast<A>(divisor));
        for (; j + lanes<A> <= n; j += lanes<A>) {
            const Vec<A> v = load<A>(state + j);
            if constexpr (R::positions) store<A>(out + j, v);
            else store<A>(out + j, R::finish(divisor == 1.0 ? v : v / by, p));
        }
    }
    for (; j < n; ++j) out[j] = one(state[j], divisor);
}

template <class C>
POOLKIT_ONCE void store_codes(const C* codes, int64_t n, int64_t positions, int64_t at, void* out) {
    if (positions <= 256)
        for (int64_t j = 0; j < n; ++j) static_cast<uint8_t*>(out)[at + j] = static_cast<uint8_t>(codes[j]);
    else if (positions <= 65536)
        for (int64_t j = 0; j < n; ++j) static_cast<uint16_t*>(out)[at + j] = static_cast<uint16_t>(codes[j]);
    else
        for (int64_t j = 0; j < n; ++j) static_cast<uint32_t*>(out)[at + j] = static_cast<uint32_t>(codes[j]);
}

// --- the drivers --------------------------------------------------------------------------------

// How a geometry is walked; the same answer for counting, for scratch and for the work.
enum class Walk {
    lines,    // one long axis, nothing behind it: tasks are pieces of a line
    spans,    // one window over a contiguous axis: tasks are whole lines
    columns,  // one window over an axis with lines behind it: tasks are pieces of a line
    direct,   // lines behind: all the pixels of a window are merged at once
    ring,     // axis by axis
};

Walk walk_of(const Geometry& g, int64_t inner) {
    const Axis& last = g.axis[g.axes - 1];
    if (g.axes == 1 && inner == 1)
        return last.outputs == 1 && last.step == 1 && last.taps > 8 ? Walk::spans : Walk::lines;
    if (g.axes == 1 && last.outputs == 1) return Walk::columns;
    if (inner == 1) return Walk::ring;
    bool disjoint = true;
    for (int a = 0; a < g.axes; ++a) disjoint = disjoint && g.axis[a].disjoint;
    if (g.positions <= kDirectTaps || (disjoint && g.positions <= kMaxDirectTaps)) return Walk::direct;
    return Walk::ring;
}

int64_t line_pieces(const Axis& axis) { return (axis.outputs + kLineChunk - 1) / kLineChunk; }
int64_t column_pieces(int64_t inner) { return (inner + 1023) / 1024; }

int64_t count_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    switch (walk_of(g, inner)) {
        case Walk::lines: return outer * line_pieces(g.axis[0]);
        case Walk::spans: return outer;
        case Walk::columns: return outer * column_pieces(inner);
        default: return outer * g.axis[0].outputs;
    }
}

// R over S, accumulated in A, to O. With Positions, also where each value was found.
template <class R, class S, class A, class O, bool Positions>
class Pooling {
  public:
    using C = Code<A>;

    Pooling(const Geometry& geometry, int64_t inner_size, Arena arena)
        : g(geometry), inner(inner_size), last(geometry.axes - 1) {
        length[g.axes] = inner;
        extent[g.axes] = inner;
        for (int a = last; a >= 0; --a) {
            length[a] = length[a + 1] * g.axis[a].outputs;
            extent[a] = extent[a + 1] * g.axis[a].size;
        }
        walk = walk_of(g, inner);
        const int64_t slack = 2 * lanes<A>;
        int64_t taps = 1;
        if (walk == Walk::direct) taps = g.positions;
        if (walk == Walk::ring) {
            for (int a = 0; a < last; ++a) {
                // A power of two, so that a row finds its place without a division.
                rows[a] = power_of_two((g.axis[a].taps - 1) * g.axis[a].step + 1);
                stored[a] = round_up(length[a + 1] + slack, lanes<A>);
                ring[a] = arena.template take<A>(rows[a] * stored[a]);
                tag[a] = arena.template take<const S*>(rows[a]);
                broken[a] = arena.template take<bool>(rows[a]);
                if (Positions) ring_codes[a] = arena.template take<C>(rows[a] * stored[a]);
                if (g.axis[a].taps > taps) taps = g.axis[a].taps;
            }
        }
        most_taps = taps;
        lines = arena.template take<const A*>(taps * kMaxAxes);
        if (Positions) line_codes = arena.template take<const C*>(taps * kMaxAxes);
        int64_t result = length[g.axes - 1 > 0 ? 1 : 0];
        if (walk == Walk::lines) result = at_most(g.axis[0].outputs, kLineChunk);
        if (walk == Walk::direct || walk == Walk::columns) result = inner;
        if (walk == Walk::spans) result = lanes<A>;
        state = arena.template take<A>(result + slack);
        if (Positions) codes = arena.template take<C>(result + slack);
        if (inner == 1 && walk != Walk::spans) {
            const Axis& axis = g.axis[last];
            const int64_t outputs = walk == Walk::lines ? at_most(axis.outputs, kLineChunk) : axis.outputs;
            buffer = arena.template take<A>(windowed_room<A>(axis, outputs));
        }
        // Rows that windows tile without a rest are one long line: short rows fill no vector.
        const Axis& row = g.axis[last];
        joins = walk == Walk::ring && !Positions && inner == 1 && g.axes == 2 && row.regular &&
                row.offset == 0 && row.full_end == row.outputs &&
                row.stride * row.outputs == row.size && (row.taps - 1) * row.step < row.stride &&
                g.axis[0].regular && g.axis[0].step == 1 && row.outputs <= kJoinedRow;
        if (joins) {
            joined_outputs = at_most(g.axis[0].outputs, 1 + kJoinedRow / row.outputs);
            joined_rows = (joined_outputs - 1) * g.axis[0].stride + g.axis[0].taps;
            joined = arena.template take<A>(joined_rows * row.outputs + slack);
            buffer = arena.template take<A>(joined_rows * row.size + 4 * lanes<A>);
        }
        if (g.axis[last].outputs > 0) whole_line = extent_of(g.axis[last], 0, g.axis[last].outputs);
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        const S* x = static_cast<const S*>(part.x);
        O* out = static_cast<O*>(part.out);
        switch (walk) {
            case Walk::lines: return run_lines(x, out, part);
            case Walk::spans: return run_spans(x, out, part);
            case Walk::columns: return run_columns(x, out, part);
            case Walk::direct: return run_direct(x, out, part);
            case Walk::ring: return run_ring(x, out, part);
        }
    }

  private:
    const Geometry& g;
    int64_t inner;
    int last;
    Walk walk;
    int64_t length[kMaxAxes + 1];  // outputs of axes a.. with what is behind them
    int64_t extent[kMaxAxes + 1];  // inputs of the same
    int64_t rows[kMaxAxes] = {}, stored[kMaxAxes] = {};
    A* ring[kMaxAxes] = {};
    C* ring_codes[kMaxAxes] = {};
    const S** tag[kMaxAxes] = {};
    bool* broken[kMaxAxes] = {};  // whether there may be a NaN in a kept block
    int64_t most_taps = 1;
    const A** lines = nullptr;
    const C** line_codes = nullptr;
    A* state = nullptr;
    C* codes = nullptr;
    A* buffer = nullptr;
    Extent whole_line{};
    bool joins = false;
    int64_t joined_outputs = 0, joined_rows = 0;
    A* joined = nullptr;

    // Whether a state is already the result.
    static constexpr bool direct_result = same<A, O> && R::positions;

    double divisor(int a, int64_t o) const { return g.axis[a].divisor ? g.axis[a].divisor[o] : 1.0; }

    // The radix of what is behind axis a in a position code.
    int64_t radix(int a) const {
        int64_t product = 1;
        for (int b = a + 1; b < g.axes; ++b) product *= g.axis[b].taps;
        return product;
    }

    void run_lines(const S* x, O* out, const Part& part) {
        const Axis& axis = g.axis[0];
        const int64_t pieces = line_pieces(axis);
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t line = task / pieces, o0 = task % pieces * kLineChunk;
            const int64_t o1 = at_most(o0 + kLineChunk, axis.outputs);
            const int64_t at = line * axis.outputs + o0;
            if constexpr (Positions) {
                within_positions<R, A>(axis, x + line * axis.size, o0, o1, state, codes);
                store_codes(codes, o1 - o0, g.positions, at, part.positions);
            } else {
                within<R, A>(axis, x + line * axis.size, o0, o1, extent_of(axis, o0, o1), g.exponent,
                             buffer, state);
            }
            finish(state, o1 - o0, 1.0, axis.divisor ? axis.divisor + o0 : nullptr, out + at);
        }
    }

    void run_spans(const S* x, O* out, const Part& part) {
        const Axis& axis = g.axis[0];
        const int64_t n = axis.count[0], width = lanes<A>;
        for (int64_t line = part.first; line < part.last;) {
            const int64_t left = at_most(width, part.last - line);
            const S* from = x + line * axis.size + axis.begin[0];
            if (left == width) {  // as many lines as lanes: their last steps are taken together
                Vec<A> v[lanes<A>];
                for (int64_t i = 0; i < width; ++i)
                    v[i] = fold_to_lanes<R, A>(from + i * axis.size, n, g.exponent);
                store<A>(state, fold_lanes<R, A>(v));
                if constexpr (R::positions && is_float<S>)
                    for (int64_t i = 0; i < width; ++i)
                        if (state[i] == A(0)) state[i] = first_zero(from + i * axis.size, n, state[i]);
            } else {
                for (int64_t i = 0; i < left; ++i)
                    state[i] = fold_span<R, A>(from + i * axis.size, n, 1, g.exponent);
            }
            if constexpr (Positions) {
                for (int64_t i = 0; i < left; ++i)
                    codes[i] = static_cast<C>(find_in_span<A>(from + i * axis.size, n, 1, state[i]));
                store_codes(codes, left, g.positions, line, part.positions);
            }
            finish(state, left, divisor(0, 0), nullptr, out + line);
            line += left;
        }
    }

    void run_columns(const S* x, O* out, const Part& part) {
        const Axis& axis = g.axis[0];
        const int64_t pieces = column_pieces(inner);
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t slab = task / pieces, j0 = task % pieces * 1024;
            const int64_t n = at_most<int64_t>(1024, inner - j0);
            const StridedLines<S> from{x + (slab * axis.size + axis.begin[0]) * inner + j0,
                                       axis.step * inner};
            if constexpr (Positions) {
                across_positions<R, A>(from, nullptr, axis.count[0], 1, n, state, codes);
                store_codes(codes, n, g.positions, slab * inner + j0, part.positions);
            } else {
                across<R, A, true>(from, axis.count[0], n, g.exponent, state);
            }
            finish(state, n, divisor(0, 0), nullptr, out + slab * inner + j0);
        }
    }

    void run_direct(const S* x, O* out, const Part& part) {
        const int64_t outputs = g.axis[0].outputs;
        const S** pixels = reinterpret_cast<const S**>(lines);
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t slab = task / outputs, o0 = task % outputs;
            const S* from = x + slab * extent[0];
            const int64_t behind = length[1] / inner;  // output pixels of one task
            for (int64_t pixel = 0; pixel < behind; ++pixel) {
                int64_t o[kMaxAxes] = {o0, 0, 0};
                for (int64_t a = last, rest = pixel; a > 0; --a) {
                    o[a] = rest % g.axis[a].outputs;
                    rest /= g.axis[a].outputs;
                }
                int64_t count = 1;
                bool clipped = false;
                double row = 1.0;
                pixels[0] = from;
                for (int a = 0; a < g.axes; ++a) {
                    const Axis& axis = g.axis[a];
                    const int64_t taps = axis.count[o[a]];
                    clipped = clipped || taps != axis.taps;
                    row *= divisor(a, o[a]);
                    // In place, from the back: every pixel so far becomes `taps` pixels.
                    for (int64_t i = count - 1; i >= 0; --i) {
                        const S* base = pixels[i] + axis.begin[o[a]] * extent[a + 1];
                        for (int64_t t = taps - 1; t >= 0; --t)
                            pixels[i * taps + t] = base + t * axis.step * extent[a + 1];
                    }
                    count *= taps;
                }
                const int64_t at = slab * length[0] + (o0 * behind + pixel) * inner;
                const ListedLines<S> window{pixels};
                if constexpr (Positions) {
                    across_positions<R, A>(window, nullptr, count, 1, inner, state, codes);
                    if (clipped) recode(o);
                    store_codes(codes, inner, g.positions, at, part.positions);
                    finish(state, inner, row, nullptr, out + at);
                } else if constexpr (direct_result) {
                    across<R, A, true>(window, count, inner, g.exponent, out + at);
                } else {
                    across<R, A, true>(window, count, inner, g.exponent, state);
                    finish(state, inner, row, nullptr, out + at);
                }
            }
        }
    }

    // Codes counted in a clipped window become codes in the radix of the whole one.
    void recode(const int64_t* o) {
        for (int64_t j = 0; j < inner; ++j) {
            int64_t rest = codes[j], code = 0;
            for (int a = last, scale = 1; a >= 0; --a) {
                const int64_t taps = g.axis[a].count[o[a]];
                code += rest % taps * scale;
                rest /= taps;
                scale *= static_cast<int>(g.axis[a].taps);
            }
            codes[j] = static_cast<C>(code);
        }
    }

    void run_ring(const S* x, O* out, const Part& part) {
        for (int a = 0; a < last; ++a)
            for (int64_t i = 0; i < rows[a]; ++i) tag[a][i] = nullptr;
        const int64_t outputs = g.axis[0].outputs;
        int64_t slab = part.first / outputs, o = part.first % outputs - 1;
        for (int64_t task = part.first; task < part.last; ++task) {
            if (++o == outputs) o = 0, ++slab;
            const int64_t at = slab * length[0] + o * length[1];
            if (joins) {
                const int64_t n = at_most(at_most(joined_outputs, outputs - o), part.last - task);
                run_joined(x + slab * extent[0], out + at, o, n);
                task += n - 1;
                o += n - 1;
                continue;
            }
            if constexpr (direct_result && !Positions) {
                reduce_slabs(0, o, x + slab * extent[0], out + at, nullptr);
            } else {
                reduce_slabs(0, o, x + slab * extent[0], state, codes);
                finish_block(1, divisor(0, o), state, out + at);
                if constexpr (Positions) store_codes(codes, length[1], g.positions, at, part.positions);
            }
        }
    }

    // n output rows from o on, whose input rows are reduced as one line.
    void run_joined(const S* from, O* out, int64_t o, int64_t n) {
        const Axis& rows_axis = g.axis[0];
        Axis row = g.axis[last];
        const int64_t width = row.outputs, first = rows_axis.begin[o];
        int64_t end = first;
        for (int64_t k = o; k < o + n; ++k) {
            const int64_t after = rows_axis.begin[k] + rows_axis.count[k];
            if (rows_axis.count[k] > 0 && after > end) end = after;
        }
        row.size *= end - first;
        row.outputs = row.full_end = width * (end - first);
        bool found = false;
        if (end > first)
            found = within<R, A>(row, from + first * extent[1], 0, row.outputs,
                                 extent_of(row, 0, row.outputs), g.exponent, buffer, joined);
        for (int64_t k = o; k < o + n; ++k, out += width) {
            const StridedLines<A> window{joined + (rows_axis.begin[k] - first) * width, width};
            A* to = state;
            if constexpr (direct_result) to = out;
            if (found) across<R, A, false>(window, rows_axis.count[k], width, g.exponent, to);
            else across<Quick<R, S>, A, false>(window, rows_axis.count[k], width, g.exponent, to);
            if constexpr (!direct_result) finish(state, width, divisor(0, k), g.axis[last].divisor, out);
        }
    }

    // Axes a.. of a block of states, results behind each other.
    void finish_block(int a, double row, const A* from, O* to) {
        if (a > last || a >= kMaxAxes) return finish(from, inner, row, nullptr, to);
        const Axis& axis = g.axis[a];
        if (a == last && inner == 1) return finish(from, axis.outputs, row, axis.divisor, to);
        if (!axis.divisor) return finish(from, length[a], row, nullptr, to);
        for (int64_t o = 0; o < axis.outputs; ++o)
            finish_block(a + 1, row * axis.divisor[o], from + o * length[a + 1], to + o * length[a + 1]);
    }

    POOLKIT_ONCE void finish(const A* from, int64_t n, double row, const double* columns, O* to) {
        const bool uniform = g.axis[last].divisor_uniform;
        finish_line<R, A, O>(from, n, row, columns, uniform, g.exponent, to);
    }

    // Output o of axis a: the slabs that it sees, each reduced along the axes behind (once: they
    // are kept in the ring), merged.
    bool reduce_slabs(int a, int64_t o, const S* from, A* to, C* to_codes) {
        const Axis& axis = g.axis[a];
        const int64_t count = axis.count[o];
        const A** slabs = lines + a * most_taps;
        const C** slab_codes = Positions ? line_codes + a * most_taps : nullptr;
        bool may_break = false;
        for (int64_t t = 0; t < count; ++t) {
            const int64_t i = axis.begin[o] + t * axis.step;
            const S* slab = from + i * extent[a + 1];
            const int64_t slot = i & (rows[a] - 1);
            A* kept = ring[a] + slot * stored[a];
            C* kept_codes = Positions ? ring_codes[a] + slot * stored[a] : nullptr;
            if (tag[a][slot] != slab) {
                broken[a][slot] = reduce_block(a + 1, slab, kept, kept_codes);
                tag[a][slot] = slab;
            }
            may_break = may_break || broken[a][slot];
            slabs[t] = kept;
            if (Positions) slab_codes[t] = kept_codes;
        }
        const ListedLines<A> window{slabs};
        if constexpr (Positions)
            across_positions<R, A>(window, slab_codes, count, radix(a), length[a + 1], to, to_codes);
        else if (may_break)
            across<R, A, false>(window, count, length[a + 1], g.exponent, to);
        else
            across<Quick<R, S>, A, false>(window, count, length[a + 1], g.exponent, to);
        return may_break;
    }

    // Axes a.. of a block of inputs; whether there may be a NaN among them. `to` has slack behind.
    bool reduce_block(int a, const S* from, A* to, C* to_codes) {
        const Axis& axis = g.axis[a];
        bool may_break = false;
        if (a < last) {
            for (int64_t o = 0; o < axis.outputs; ++o) {
                const int64_t at = o * length[a + 1];
                may_break |= reduce_slabs(a, o, from, to + at, Positions ? to_codes + at : nullptr);
            }
        } else if (inner == 1) {
            if constexpr (Positions) within_positions<R, A>(axis, from, 0, axis.outputs, to, to_codes);
            else may_break = within<R, A>(axis, from, 0, axis.outputs, whole_line, g.exponent, buffer, to);
        } else {
            for (int64_t o = 0; o < axis.outputs; ++o) {
                const StridedLines<S> window{from + axis.begin[o] * inner, axis.step * inner};
                if constexpr (Positions)
                    across_positions<R, A>(window, nullptr, axis.count[o], 1, inner, to + o * inner, to_codes + o * inner);
                else
                    across<R, A, true>(window, axis.count[o], inner, g.exponent, to + o * inner);
            }
            may_break = scans<R, S>;
        }
        return may_break;
    }
};

// Codes that do not fit beside the values (more than 256 positions of 8-bit values) are found in
// a plain loop.
template <class R, class S, class A>
void forward_wide_positions(const Geometry& g, const Part& part) {
    const S* x = static_cast<const S*>(part.x);
    S* out = static_cast<S*>(part.out);
    int64_t plane = 1, results = 1;
    for (int a = 0; a < g.axes; ++a) plane *= g.axis[a].size, results *= g.axis[a].outputs;
    const int64_t slabs = results / (g.axis[0].outputs ? g.axis[0].outputs : 1);
    for (int64_t task = part.first; task < part.last; ++task) {
        const int64_t outer = task / g.axis[0].outputs, o0 = task % g.axis[0].outputs;
        for (int64_t r = 0; r < slabs; ++r)
            for (int64_t c = 0; c < part.inner; ++c) {
                int64_t o[kMaxAxes] = {o0, 0, 0};
                for (int64_t a = g.axes - 1, rest = r; a > 0; --a) {
                    o[a] = rest % g.axis[a].outputs;
                    rest /= g.axis[a].outputs;
                }
                A best = R::template identity<A>();
                int64_t best_code = -1;
                for (int64_t code = 0; code < g.positions; ++code) {
                    int64_t at = 0, rest = code, scale = 1;
                    bool inside = true;
                    for (int a = g.axes - 1; a >= 0; --a) {
                        const Axis& axis = g.axis[a];
                        const int64_t t = rest % axis.taps;
                        rest /= axis.taps;
                        inside = inside && t < axis.count[o[a]];
                        at += (axis.begin[o[a]] + t * axis.step) * scale;
                        scale *= axis.size;
                    }
                    if (!inside) continue;
                    const A v = static_cast<A>(widen(x[(outer * plane + at) * part.inner + c]));
                    if (best_code < 0 || R::replaces(best, v)) best = v, best_code = code;
                }
                const int64_t to = (outer * results + o0 * slabs + r) * part.inner + c;
                const int64_t code = best_code;
                out[to] = narrow<S>(best);
                store_codes(&code, 1, g.positions, to, part.positions);
            }
    }
}

template <class R, class S, class A, class O>
int64_t scratch_bytes(const Geometry& g, int64_t inner, bool positions) {
    if constexpr (R::positions)
        if (positions) return Pooling<R, S, A, O, true>(g, inner, Arena{nullptr}).bytes;
    return Pooling<R, S, A, O, false>(g, inner, Arena{nullptr}).bytes;
}

template <class R, class S, class A, class O>
void forward(const Geometry& g, const Part& part) {
    Pooling<R, S, A, O, false>(g, part.inner, Arena{static_cast<char*>(part.scratch)}).run(part);
}

template <class R, class S, class A, class O>
void forward_positions(const Geometry& g, const Part& part) {
    if constexpr (R::positions) {
        if constexpr (sizeof(A) < 4)
            if (g.positions > (int64_t{1} << (8 * sizeof(A))))
                return forward_wide_positions<R, S, A>(g, part);
        Pooling<R, S, A, O, true>(g, part.inner, Arena{static_cast<char*>(part.scratch)}).run(part);
    }
}

// --- the gradient of max and min ----------------------------------------------------------------

// Each input gathers from the outputs whose position code names it, in ascending order of the
// outputs: no two threads write to one place, and the result does not depend on their number.
template <class S>
class Scattering {
  public:
    using A = typename AddingAccumulator<S>::type;
    using C = Code<A>;

    Scattering(const Geometry& geometry, int64_t inner_size, Arena arena)
        : g(geometry), inner(inner_size), last(geometry.axes - 1) {
        // Axes that are looped over: all of them with lines behind, else all but the last.
        looped = inner > 1 ? g.axes : last;
        int64_t covers = 1;
        for (int a = 0; a < looped; ++a) {
            int64_t most = 1;
            for (int64_t i = 0; i < g.axis[a].size; ++i)
                if (g.axis[a].transposed_count[i] > most) most = g.axis[a].transposed_count[i];
            covers *= most;
        }
        cover = arena.template take<Cover>(covers);
        line = arena.template take<A>((inner > 1 ? inner : g.axis[last].size) + 2 * lanes<A>);
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        int64_t per_task = 1, rows = 1, plane = 1;
        for (int a = 0; a < g.axes; ++a) plane *= g.axis[a].size;
        for (int a = 0; a < looped; ++a) rows *= g.axis[a].size;
        per_task = looped > 0 ? rows / g.axis[0].size : 1;
        const int64_t tasks = looped > 0 ? g.axis[0].size : 1;
        int64_t results = 1;
        for (int a = 0; a < g.axes; ++a) results *= g.axis[a].outputs;
        const int64_t span = plane / rows * inner;  // inputs of one row of this walk
        S* out = static_cast<S*>(part.out);
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t outer = task / tasks, first = task % tasks;
            for (int64_t r = 0; r < per_task; ++r) {
                const int64_t row = first * per_task + r;
                const int64_t covers = cover_of(row);
                const int64_t base = outer * results * inner;
                S* to = out + (outer * plane * inner) + row * span;
                const S* grad = static_cast<const S*>(part.x) + base;
                if (g.positions <= 256) gather(grad, static_cast<const uint8_t*>(part.positions) + base, covers, to);
                else if (g.positions <= 65536) gather(grad, static_cast<const uint16_t*>(part.positions) + base, covers, to);
                else gather(grad, static_cast<const uint32_t*>(part.positions) + base, covers, to);
            }
        }
    }

  private:
    struct Cover {
        int64_t at;    // first output of the row that sees this input row
        int64_t code;  // what its codes are when they mean this row: code + the taps of the rest
    };

    const Geometry& g;
    int64_t inner;
    int last, looped;
    Cover* cover;
    A* line;

    // The output rows that see an input row, in ascending order.
    int64_t cover_of(int64_t row) {
        int64_t i[kMaxAxes] = {};
        for (int64_t a = looped - 1, rest = row; a >= 0; --a) {
            i[a] = rest % g.axis[a].size;
            rest /= g.axis[a].size;
        }
        int64_t count = 1;
        cover[0] = {0, 0};
        for (int a = 0; a < looped; ++a) {
            const Axis& axis = g.axis[a];
            const int64_t outs = axis.transposed_count[i[a]];
            for (int64_t k = count - 1; k >= 0; --k) {
                const Cover before = cover[k];
                for (int64_t j = outs - 1; j >= 0; --j) {
                    const int64_t o = axis.transposed_begin[i[a]] + j * axis.transposed_step;
                    const int64_t tap = (i[a] - axis.begin[o]) / axis.step;
                    cover[k * outs + j] = {before.at * axis.outputs + o, before.code * axis.taps + tap};
                }
            }
            count *= outs;
        }
        return count;
    }

    template <class P>
    void gather(const S* grad, const P* codes, int64_t covers, S* to) {
        if (inner > 1) gather_lines(grad, codes, covers, to);
        else gather_row(grad, codes, covers, to);
    }

    template <class P>
    void gather_lines(const S* grad, const P* codes, int64_t covers, S* to) {
        int64_t j = 0;
        for (; j + lanes<A> <= inner; j += lanes<A>) {
            Vec<A> acc{};
            for (int64_t k = 0; k < covers; ++k) {
                const int64_t at = cover[k].at * inner + j;
                const Vec<C> code = load<C>(codes + at);
                acc += (code == broadcast<C>(static_cast<C>(cover[k].code))) ? load<A>(grad + at) : Vec<A>{};
            }
            store<A>(to + j, acc);
        }
        for (; j < inner; ++j) {
            A acc = 0;
            for (int64_t k = 0; k < covers; ++k) {
                const int64_t at = cover[k].at * inner + j;
                if (codes[at] == cover[k].code) acc += static_cast<A>(widen(grad[at]));
            }
            to[j] = narrow<S>(acc);
        }
    }

    template <class P>
    void gather_row(const S* grad, const P* codes, int64_t covers, S* to) {
        const Axis& axis = g.axis[last];
        A* sums = line;
        if constexpr (same<A, S>) sums = to;
        for (int64_t i = 0; i < axis.size; ++i) sums[i] = A(0);
        for (int64_t k = 0; k < covers; ++k) {
            const int64_t at = cover[k].at * axis.outputs, base = cover[k].code * axis.taps;
            add_row(axis, grad + at, codes + at, base, sums);
        }
        if constexpr (!same<A, S>)
            for (int64_t i = 0; i < axis.size; ++i) to[i] = narrow<S>(line[i]);
    }

    template <class P>
    POOLKIT_INLINE void add_row(const Axis& axis, const S* grad, const P* codes, int64_t base, A* sums) {
        const auto one = [&](int64_t o) {
            const int64_t tap = static_cast<int64_t>(codes[o]) - base;
            if (tap >= 0 && tap < axis.taps) sums[axis.begin[o] + tap * axis.step] += static_cast<A>(widen(grad[o]));
        };
        const bool pairs = axis.stride == 2 && axis.step == 1 && axis.taps >= 2;
        const bool vector = axis.regular && axis.taps <= 8 && (axis.stride == 1 || pairs);
        int64_t o = 0;
        if (vector) {
            for (; o < axis.full_begin; ++o) one(o);
            for (; o + lanes<A> <= axis.full_end; o += lanes<A>) {
                const Vec<C> tap = load<C>(codes + o) - broadcast<C>(static_cast<C>(base));
                const Vec<A> g16 = load<A>(grad + o);
                A* at = sums + o * axis.stride + axis.offset;
                const auto share = [&](int64_t t) {
                    return (tap == broadcast<C>(static_cast<C>(t))) ? g16 : Vec<A>{};
                };
                if (axis.stride == 1) {
                    for (int64_t t = 0; t < axis.taps; ++t)
                        store<A>(at + t * axis.step, load<A>(at + t * axis.step) + share(t));
                } else {
                    const auto add_pair = [&](A* to, Vec<A> a, Vec<A> b) {
                        store<A>(to, load<A>(to) + zip_first<A>(a, b));
                        store<A>(to + lanes<A>, load<A>(to + lanes<A>) + zip_second<A>(a, b));
                    };
                    int64_t t = 0;
                    for (; t + 2 <= axis.taps; t += 2) add_pair(at + t, share(t), share(t + 1));
                    // A last tap without a partner is paired with the one before, which gets 0.
                    if (t < axis.taps) add_pair(at + t - 1, Vec<A>{}, share(t));
                }
            }
        }
        for (; o < axis.outputs; ++o) one(o);
    }
};

int64_t count_scatter_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    return outer * (inner > 1 || g.axes > 1 ? g.axis[0].size : 1);
}

template <class S>
int64_t scatter_scratch(const Geometry& g, int64_t inner) {
    return Scattering<S>(g, inner, Arena{nullptr}).bytes;
}

template <class S>
void scatter(const Geometry& g, const Part& part) {
    Scattering<S>(g, part.inner, Arena{static_cast<char*>(part.scratch)}).run(part);
}

// --- the table ----------------------------------------------------------------------------------

template <class R, class S, class O>
constexpr poolkit::Kernel kernel(const char* reduction, const char* dtype, const char* result) {
    if constexpr (R::template accepts<S>) {
        using A = typename R::template Accumulator<S>;
        return {reduction,
                dtype,
                result,
                count_tasks,
                scratch_bytes<R, S, A, O>,
                forward<R, S, A, O>,
                R::positions ? forward_positions<R, S, A, O> : nullptr};
    } else {
        return {};
    }
}

template <class S>
constexpr poolkit::Scatter scatter_row(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype, count_scatter_tasks, scatter_scratch<S>, scatter<S>};
    else
        return {};
}

// Integers add up to int64, or, divided by the positions of the window, to a float32 mean.
template <class S>
constexpr bool is_integer = !is_float<S>;
template <class R, class S>
using Result = typename Choose<same<R, Sum> && is_integer<S>, int64_t, S>::type;
template <class R, class S>
using IntegerMean = typename Choose<same<R, Sum> && is_integer<S>, Sum, SumAbs>::type;

#define POOLKIT_KERNEL(NAME, R, DTYPE, S) \
    kernel<R, S, Result<R, S>>(#NAME, #DTYPE, same<Result<R, S>, S> ? #DTYPE : "int64"),
#define POOLKIT_MEAN(NAME, R, DTYPE, S)                                             \
    same<R, Sum> && is_integer<S> ? kernel<IntegerMean<R, S>, S, float>(#NAME, #DTYPE, "float32") \
                                  : poolkit::Kernel{},
#define POOLKIT_ROWS(NAME, R) \
    POOLKIT_DTYPES(POOLKIT_KERNEL, NAME, R) POOLKIT_DTYPES(POOLKIT_MEAN, NAME, R)
#define POOLKIT_SCATTER(UNUSED, DTYPE, S) scatter_row<S>(#DTYPE),

// Rows without a name are combinations that do not exist.
constexpr poolkit::Kernel kKernels[] = {POOLKIT_REDUCTIONS(POOLKIT_ROWS)};
constexpr poolkit::Scatter kScatters[] = {POOLKIT_DTYPES(POOLKIT_SCATTER, )};

#define POOLKIT_STRING(x) #x
#define POOLKIT_NAME(x) POOLKIT_STRING(x)
#define POOLKIT_JOIN(a, b) a##b
#define POOLKIT_SYMBOL(isa) POOLKIT_JOIN(poolkit_table_, isa)

}  // namespace

extern "C" const poolkit::Table POOLKIT_SYMBOL(POOLKIT_ISA);
extern "C" const poolkit::Table POOLKIT_SYMBOL(POOLKIT_ISA) = {
    POOLKIT_NAME(POOLKIT_ISA), kKernels, sizeof kKernels / sizeof kKernels[0], kScatters,
    sizeof kScatters / sizeof kScatters[0]};
