// Reducing windows along a contiguous axis: sliding windows of a line, and long spans one by one.
#pragma once

#include "across.h"

namespace {

// Windows of at least this many neighbouring positions are reduced by doubling (see `within`).
constexpr int64_t kDoubling = 6;
// Longer contiguous windows are folded one by one, lanes first.
constexpr int64_t kLongSpan = 24;

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
    for (int i = 0; i < Wide<A>::parts; ++i) wide.v[i] = R::lift(load<A>(from + i * lanes<A>), p);
    return wide;
}

template <class R, class A>
POOLKIT_INLINE void merge_wide(Wide<A>& a, const Wide<A>& b) {
#pragma GCC unroll 4
    for (int i = 0; i < Wide<A>::parts; ++i) a.v[i] = R::merge(a.v[i], b.v[i]);
}

template <class R, class A, class S>
POOLKIT_INLINE Wide<A> chain_wides(const S* from, int64_t wides, double p) {
    Wide<A> acc = load_wide<R, A>(from, p);
    for (int64_t i = 1; i < wides; ++i)
        merge_wide<R>(acc, load_wide<R, A>(from + i * Wide<A>::width, p));
    return acc;
}

// A chain of up to kChain wides, then a tree of chains.
template <class R, class A, class S>
POOLKIT_ONCE Wide<A> fold_wides(const S* from, int64_t wides, double p) {
    if (wides <= kChain) return chain_wides<R, A>(from, wides, p);
    const int64_t first = round_up(wides / 2, kChain);
    Wide<A> acc = fold_wides<R, A>(from, first, p);
    merge_wide<R>(acc, fold_wides<R, A>(from + first * Wide<A>::width, wides - first, p));
    return acc;
}

// n contiguous values in the lanes of one vector: all but the last step of folding them.
template <class R, class A, class S>
POOLKIT_INLINE Vec<A> fold_to_lanes(const S* from, int64_t n, double p) {
    constexpr int64_t width = Wide<A>::width;
    const int64_t whole = n / width, rest = n % width;
    Wide<A> acc{};
    if (whole > kChain)
        acc = fold_wides<R, A>(from, whole, p);
    else if (whole > 0)
        acc = chain_wides<R, A>(from, whole, p);
    if (rest > 0) {
        const Vec<A> nothing = broadcast<A>(R::template identity<A>());
        const Vec<A> unlifted = broadcast<A>(blank<R, A>(p));
        Wide<A> last;
        // Integers, of which no sum has an order, are loaded up to the end, not one by one: a mean
        // of 7x7 of 8 bits takes 0.35 of the time.
        for (int i = 0; i < Wide<A>::parts; ++i) {
            const int64_t left = rest - i * lanes<A>;
            const S* part = from + whole * width + i * lanes<A>;
            last.v[i] = nothing;
            if (left >= lanes<A>)
                last.v[i] = R::lift(load<A>(part), p);
            else if (left > 0 && !is_float<S> && n >= lanes<A>)
                last.v[i] =
                    last_lanes<A>(R::lift(load<A>(part + left - lanes<A>), p), left, nothing);
            else if (left > 0)
                last.v[i] = R::lift(load_first<A>(part, left, unlifted), p);
        }
        if (whole > 0)
            merge_wide<R>(acc, last);
        else
            acc = last;
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
        if (!R::idempotent && n > kChain) {
            const int64_t middle = round_up(n / 2, kChain);
            const A first = fold_span<R, A>(from, middle, step, p);
            return R::merge(first, fold_span<R, A>(from + middle * step, n - middle, step, p));
        }
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
    int64_t slack;  // vectors that loads for the last outputs may run beyond the reach
};

POOLKIT_INLINE Extent extent_of(const Axis& axis, int64_t o0, int64_t o1) {
    Extent e;
    e.start = o0 * axis.stride + axis.offset;
    e.reach = (o1 - 1 - o0) * axis.stride + (axis.taps - 1) * axis.step + 1;
    e.before = e.start < 0 ? at_most(-e.start, e.reach) : 0;
    const int64_t inside = at_most(axis.size - e.start, e.reach) - e.before;
    e.inside = inside > 0 ? inside : 0;
    e.slack = at_most<int64_t>(axis.stride, 4);
    return e;
}

// Lines without a NaN, which are nearly all, are merged without looking for one.
template <class R, class S>
constexpr bool scans = R::positions && is_float<S>;
template <class R, class S>
using Quick = typename Choose<scans<R, S>, NoNaN<R>, R>::type;

// Whether there is a NaN among n values.
template <class A, class S>
POOLKIT_INLINE bool has_nan(const S* from, int64_t n) {
    constexpr int64_t width = lanes<A>;
    Watch<A> watch;
    if (n < width) {
        const Vec<A> v = load_first<A>(from, n, Vec<A>{});
        watch.nan(v, v);
        return watch.found();
    }
    int64_t i = 0;
    for (; i + 2 * width <= n; i += 2 * width)
        watch.nan(load<A>(from + i), load<A>(from + i + width));
    if (i < n) {
        const int64_t last = n - width;
        watch.nan(load<A>(from + at_most(i, last)), load<A>(from + last));
    }
    return watch.found();
}

// Whether the order in which columns and rows are merged shows: in a NaN, or in the sign of a zero.
template <class A, class S>
POOLKIT_ONCE bool order_shows(const S* from, int64_t n) {
    constexpr int64_t width = lanes<A>;
    Watch<A> watch;
    int64_t i = 0;
    for (; i + width <= n; i += width) watch.nan_or_minus_zero(load<A>(from + i));
    if (i < n && n >= width)
        watch.nan_or_minus_zero(load<A>(from + n - width));
    else if (i < n)
        watch.nan_or_minus_zero(load_first<A>(from, n, Vec<A>{}));
    return watch.found();
}

// The lifted inputs of an extent as one contiguous array of A in which no window is clipped, with
// its slack. Sets `found` if there is a NaN, where that matters.
template <class R, class A, class S>
POOLKIT_INLINE const A* copy_line(const S* line, const Extent& e, double p, A* buffer,
                                  bool& found) {
    // Vectors throughout, each running into what the next loop writes: a line is often short.
    constexpr int64_t width = lanes<A>;
    const Vec<A> nothing = broadcast<A>(R::template identity<A>());
    Watch<A> watch;
    for (int64_t i = 0; i < e.before; i += width) store<A>(buffer + i, nothing);
    const S* from = line + e.start + e.before;
    A* to = buffer + e.before;
    const auto copy = [&](int64_t i) {
        const Vec<A> v = load<A>(from + i);
        if constexpr (scans<R, S>) watch.nan(v, v);
        store<A>(to + i, R::lift(v, p));
    };
    int64_t i = 0;
    for (; i + width <= e.inside; i += width) copy(i);
    if (i < e.inside && e.inside >= width) {
        copy(e.inside - width);
    } else if (i < e.inside) {
        const Vec<A> v = load_first<A>(from, e.inside, nothing);
        if constexpr (scans<R, S>) watch.nan(v, v);
        if constexpr (scans<R, S> || R::plain) {
            store<A>(to, v);
        } else {
            for (; i < e.inside; ++i) to[i] = R::lift(v[i], p);
        }
    }
    for (i = e.before + e.inside; i < e.reach + e.slack * width; i += width)
        store<A>(buffer + i, nothing);
    found = watch.found();
    return buffer;
}

// Elements that `windowed_line` may need for `outputs` outputs; doubling reads a window further.
template <class A>
int64_t windowed_room(const Axis& axis, int64_t outputs) {
    if (!axis.regular) return 0;
    return outputs * axis.stride + 2 * axis.taps * axis.step + 6 * lanes<A>;
}

// Stride 1, any number of taps, at the cost of log2(taps): sums (or maxima) of 1, 2, 4, ...
// neighbours are built in place, and a window is put together from them. Nothing is subtracted,
// so nothing cancels, and the sum is a tree.
template <class R, class A>
POOLKIT_ONCE void within_doubling(A* line, int64_t outputs, int64_t taps, int64_t step, A* out) {
    int64_t n = outputs + (taps - 1) * step;  // inputs
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
        n -= width * step;  // no further than there are windows
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
    Vec<A> acc = R::merge(evens, odds);
    int64_t t = 2;
    for (; t + 2 <= taps; t += 2) {
        even_odd<A>(from + t, evens, odds);
        acc = R::merge(R::merge(acc, evens), odds);
    }
    if (t < taps)
        acc = R::merge(acc, next_lanes<A>(evens, broadcast<A>(from[t + 2 * (lanes<A> - 1)])));
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

// Taps 0 .. taps - 1 <= Stride - 1 of strides above 2: whole vectors are loaded and their lanes
// picked, so the last window must be followed by Stride - taps readable elements.
template <class R, class A, int Stride>
POOLKIT_INLINE Vec<A> strided_at(const A* from, int64_t taps) {
    Vec<A> v[Stride];
    for (int m = 0; m < Stride; ++m) v[m] = load<A>(from + m * lanes<A>);
    if constexpr (Stride == 4) {
        if (taps == 4) {  // pairs of pairs: half the shuffles
            const Vec<A> first = R::merge(even<A>(v[0], v[1]), odd<A>(v[0], v[1]));
            const Vec<A> second = R::merge(even<A>(v[2], v[3]), odd<A>(v[2], v[3]));
            return R::merge(even<A>(first, second), odd<A>(first, second));
        }
    }
    Vec<A> acc = every<A, Stride, 0>(v);
    if (taps > 1) acc = R::merge(acc, every<A, Stride, 1>(v));
    if (taps > 2) acc = R::merge(acc, every<A, Stride, 2>(v));
    if constexpr (Stride > 3)
        if (taps > 3) acc = R::merge(acc, every<A, Stride, 3>(v));
    return acc;
}

// Whether `strided_at` serves.
POOLKIT_INLINE bool picks_lanes(const Axis& axis) {
    return (axis.stride == 3 || axis.stride == 4) && axis.step == 1 && axis.taps <= axis.stride;
}

// Windows of K neighbours along a line, by the same ladder as down lines: vectors are remembered
// one back, and what is merged is their lanes, moved. Returns what was seen `lag` vectors ago.
template <int Lanes, class V, int... I>
POOLKIT_INLINE V moved_of(V a, V b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (I + Lanes)...);
}
template <class R, class A, int K, int W = 1>
struct LaneLadder {
    static constexpr int move = 2 * W > K ? K - W : W;
    static constexpr bool tops = 2 * W >= K;
    static constexpr int lag = [] {
        if constexpr (tops)
            return 1;
        else
            return 1 + LaneLadder<R, A, K, 2 * W>::lag;
    }();
    Vec<A> past{};
    [[no_unique_address]] typename Choose<tops, Sequence<>, LaneLadder<R, A, K, 2 * W>>::type rest;
    POOLKIT_INLINE Vec<A> push(Vec<A> x) {
        const Vec<A> merged = R::merge(past, moved_of<move>(past, x, Upto<lanes<A>>{}));
        past = x;
        if constexpr (tops)
            return merged;
        else
            return rest.push(merged);
    }
};
// Whether a ladder is the quicker way, and its moves are within a vector.
template <class R, class A, int K>
constexpr bool climbs = R::idempotent && K >= 5 && K - 8 <= lanes<A> && 4 <= lanes<A>;

template <class R, class A, int K, class Put>
POOLKIT_INLINE void climb(const A* from, int64_t n, Put put) {
    using Windows = LaneLadder<R, A, K>;
    constexpr int64_t width = lanes<A>;
    Windows windows;
    for (int64_t i = 0; i < Windows::lag; ++i) windows.push(load<A>(from + i * width));
    const auto next = [&](int64_t i) {
        return windows.push(load<A>(from + i + Windows::lag * width));
    };
    int64_t i = 0;
    for (; i + width <= n; i += width) put(i, next(i));
    if (i < n) put(i, next(i));
}

// n windows none of which is clipped, in each of some rows, from lifted values. put_in(row) says
// what is done with a vector of them: it is called as put(i, windows i ...), see `each_vector`.
template <class R, class A, class PutIn>
POOLKIT_INLINE void unclipped(const Axis& axis, const A* from, int64_t pitch, int64_t rows,
                              int64_t n, PutIn put_in) {
    const int64_t stride = axis.stride, step = axis.step;
    const auto each = [&](auto window) {
        for (int64_t r = 0; r < rows; ++r) {
            const auto put = put_in(r);
            const A* row = from + r * pitch;
            each_vector<A>(n, [&](int64_t i) { put(i, window(row, i)); });
        }
    };
    if (stride == 1) {
        with_taps(axis.taps, [&](auto taps) {
            each([&](const A* row, int64_t i) {
                Vec<A> acc = load<A>(row + i);
                for (int64_t t = 1; t < taps; ++t) acc = R::merge(acc, load<A>(row + i + t * step));
                return acc;
            });
        });
    } else if (stride == 2 && step == 1 && axis.taps >= 2) {
        with_taps(axis.taps, [&](auto taps) {
            each([&](const A* row, int64_t i) { return pairs_at<R, A>(row + 2 * i, taps); });
        });
    } else if (picks_lanes(axis)) {
        const int64_t taps = axis.taps;
        if (stride == 3)
            each([&](const A* row, int64_t i) { return strided_at<R, A, 3>(row + 3 * i, taps); });
        else
            each([&](const A* row, int64_t i) { return strided_at<R, A, 4>(row + 4 * i, taps); });
    } else {
        each([&](const A* row, int64_t i) {
            A acc[lanes<A>]{};
            const int64_t live = at_most<int64_t>(lanes<A>, n - i);
            for (int64_t l = 0; l < live; ++l) {
                const A* at = row + (i + l) * stride;
                acc[l] = at[0];
                for (int64_t t = 1; t < axis.taps; ++t) acc[l] = R::merge(acc[l], at[t * step]);
            }
            return load<A>(acc);
        });
    }
}

// The same for one line, to an array with a vector of slack behind it.
template <class R, class A>
POOLKIT_INLINE void unclipped(const Axis& axis, const A* from, int64_t n, A* out) {
    unclipped<R, A>(axis, from, 0, 1, n,
                    [&](int64_t) { return [&](int64_t i, Vec<A> v) { store<A>(out + i, v); }; });
}

// out[o - o0] = the window of output o along one line. `out` has a vector of slack behind it.
// Returns whether there may be a NaN among them.
template <class R, class A, class S>
POOLKIT_ONCE bool within(const Axis& axis, const S* line, int64_t o0, int64_t o1, const Extent& e,
                         double p, A* buffer, A* out) {
    const bool doubling = axis.stride == 1 && axis.taps >= kDoubling;
    if (!axis.regular || (axis.taps > kLongSpan && !doubling)) {
        for (int64_t o = o0; o < o1; ++o)
            out[o - o0] = fold_span<R, A>(line + axis.begin[o], axis.count[o], axis.step, p);
        return scans<R, S>;
    }
    if constexpr (same<A, S> && R::plain) {
        // Where no more than two windows are clipped, the others are read in place, and those are
        // merged one by one, in the order of the vectors.
        const int64_t lo = o0 > axis.full_begin ? o0 : axis.full_begin,
                      hi = at_most(o1, axis.full_end);
        const bool overreads = picks_lanes(axis) && axis.taps < axis.stride;
        if (!doubling && !overreads && hi - lo >= lanes<A> && lo - o0 + o1 - hi <= 2) {
            const auto one = [&](int64_t o) {
                const A* at = line + axis.begin[o];
                A acc = axis.count[o] ? at[0] : R::template identity<A>();
                for (int64_t t = 1; t < axis.count[o]; ++t) acc = R::merge(acc, at[t * axis.step]);
                out[o - o0] = acc;
            };
            const A* from = line + lo * axis.stride + axis.offset;
            bool found = false;
            if constexpr (scans<R, S>) found = has_nan<A>(line + e.start + e.before, e.inside);
            for (int64_t o = o0; o < lo; ++o) one(o);
            if (found)
                unclipped<R, A>(axis, from, hi - lo, out + (lo - o0));
            else
                unclipped<Quick<R, S>, A>(axis, from, hi - lo, out + (lo - o0));
            for (int64_t o = hi; o < o1; ++o) one(o);
            return found;
        }
    }
    bool found = false;
    copy_line<R, A>(line, e, p, buffer, found);
    if (doubling) {
        if (found)
            within_doubling<R, A>(buffer, o1 - o0, axis.taps, axis.step, out);
        else
            within_doubling<Quick<R, S>, A>(buffer, o1 - o0, axis.taps, axis.step, out);
    } else {
        if (found)
            unclipped<R, A>(axis, buffer, o1 - o0, out);
        else
            unclipped<Quick<R, S>, A>(axis, buffer, o1 - o0, out);
    }
    return found;
}

// --- windows along many lines at once ----------------------------------------------------------

// As many rows as there are lanes, `pitch` apart, turned: lane r of vector j is column j of row r.
// Columns are whole vectors.
template <class A>
POOLKIT_ONCE void turn_rows(const A* from, int64_t pitch, int64_t columns, A* out) {
    constexpr int64_t width = lanes<A>;
    for (int64_t j = 0; j < columns; j += width) {
        Vec<A> v[width];  // unrolled, so that they are registers
#pragma GCC unroll 32
        for (int64_t r = 0; r < width; ++r) v[r] = load<A>(from + r * pitch + j);
        turn<A>(v);
#pragma GCC unroll 32
        for (int64_t i = 0; i < width; ++i) store<A>(out + (j + i) * width, v[i]);
    }
}

// The inverse for `rows` of them, to rows that are `columns` apart.
template <class A, class O>
POOLKIT_ONCE void turn_back(const A* from, int64_t rows, int64_t columns, O* out) {
    constexpr int64_t width = lanes<A>;
    for (int64_t j = 0; j < columns; j += width) {
        if (j + width > columns && j > 0) j = columns - width;  // again some: the same values
        Vec<A> v[width];
#pragma GCC unroll 32
        for (int64_t i = 0; i < width; ++i) v[i] = load<A>(from + (j + i) * width);
        turn<A>(v);
        // Short rows are written over the beginning of the next, which comes later.
        for (int64_t r = 0; r < rows; ++r)
            store_upto<A>(out + r * columns + j, 0, (rows - r) * columns - j, v[r]);
    }
}

// Windows of any kind along turned rows: put(o, the windows of output o).
template <class R, class A, class Put>
POOLKIT_INLINE void within_turned(const Axis& axis, const A* turned, Put put) {
    constexpr int64_t width = lanes<A>;
    for (int64_t o = 0; o < axis.outputs; ++o)
        across_to<R, A, false>(StridedLines<A>{turned + axis.begin[o] * width, axis.step * width},
                               axis.count[o], width, 0.0, [&](int64_t, Vec<A> v) { put(o, v); });
}

// n windows none of which is clipped, over `count` lines, with where each value was found: the tap,
// and `radix` more for each line. Calls put(i, values, codes) for vectors, see `each_vector`.
template <class R, class A, class S, class Put>
POOLKIT_INLINE void unclipped_positions(const Axis& axis, const S* const* lines, int64_t count,
                                        int64_t radix, int64_t n, Put put) {
    using C = Code<A>;
    struct Best {
        Vec<A> value;
        Vec<C> code{};
        POOLKIT_INLINE void offer(Vec<A> v, int64_t at) {
            const auto taken = R::replaces(value, v);
            value = taken ? v : value;
            code = taken ? broadcast<C>(static_cast<C>(at)) : code;
        }
    };
    // Taps are known to the compiler, lines are not: each is a window of its own, then offered.
    const auto over = [&](int64_t i, auto rows, auto window) {
        Best best = window(lines[0]);
        for (int64_t l = 1; l < rows; ++l) {
            const Best line = window(lines[l]);
            const auto taken = R::replaces(best.value, line.value);
            best.value = taken ? line.value : best.value;
            best.code = taken ? line.code + broadcast<C>(static_cast<C>(l * radix)) : best.code;
        }
        put(i, best.value, best.code);
    };
    // Square windows, which are nearly all, are unrolled.
    const auto over_lines = [&](auto taps, auto window_at) {
        const auto each = [&](auto rows) {
            each_vector<A>(n, [&](int64_t i) { over(i, rows, window_at(i)); });
        };
        count == taps ? each(taps) : each(count);
    };
    // A loop for each stride; at stride 1 taps that the compiler knows take 4 % less.
    if (axis.stride == 1) {
        with_taps(axis.taps, [&](auto taps) {
            over_lines(taps, [&](int64_t i) {
                return [&axis, taps, i](const S* line) {
                    Best best{load<A>(line + i)};
                    for (int64_t t = 1; t < taps; ++t)
                        best.offer(load<A>(line + i + t * axis.step), t);
                    return best;
                };
            });
        });
    } else if (axis.stride == 2) {
        with_taps(axis.taps, [&](auto taps) {
            over_lines(taps, [&](int64_t i) {
                return [taps, i](const S* line) {
                    const S* at = line + 2 * i;
                    Vec<A> a = load<A>(at), b = load<A>(at + lanes<A>);
                    Best best{even<A>(a, b)};
                    best.offer(odd<A>(a, b), 1);
                    int64_t t = 2;
                    for (; t + 2 <= taps; t += 2) {
                        a = load<A>(at + t), b = load<A>(at + t + lanes<A>);
                        best.offer(even<A>(a, b), t);
                        best.offer(odd<A>(a, b), t + 1);
                    }
                    if (t < taps) {  // the odd one of a pair that begins one earlier
                        a = load<A>(at + t - 1), b = load<A>(at + t - 1 + lanes<A>);
                        best.offer(odd<A>(a, b), t);
                    }
                    return best;
                };
            });
        });
    } else {
        const auto tiles = [&](auto stride) {
            constexpr int Stride = decltype(stride)::value;
            over_lines(stride, [&](int64_t i) {
                return [i](const S* line) {
                    Vec<A> v[Stride];
                    for (int m = 0; m < Stride; ++m)
                        v[m] = load<A>(line + Stride * i + m * lanes<A>);
                    Best best{every<A, Stride, 0>(v)};
                    best.offer(every<A, Stride, 1>(v), 1);
                    best.offer(every<A, Stride, 2>(v), 2);
                    if constexpr (Stride > 3) best.offer(every<A, Stride, 3>(v), 3);
                    return best;
                };
            });
        };
        axis.stride == 3 ? tiles(Constant<3>{}) : tiles(Constant<4>{});
    }
}

// Whether `unclipped_positions` serves: no load of its runs beyond the last window.
POOLKIT_INLINE bool positions_in_lanes(const Axis& axis) {
    const bool pairs = axis.stride == 2 && axis.step == 1 && axis.taps >= 2;
    const bool tiles =
        (axis.stride == 3 || axis.stride == 4) && axis.step == 1 && axis.taps == axis.stride;
    return axis.regular && axis.taps <= kLongSpan && (axis.stride == 1 || pairs || tiles);
}

// The same as `within`, with positions: the tap within the clipped window. Windows are never
// filled up with the identity here: it could win, and has no position.
template <class R, class A, class S>
POOLKIT_ONCE void within_positions(const Axis& axis, const S* line, int64_t o0, int64_t o1,
                                   A* buffer, A* out, Code<A>* codes) {
    using C = Code<A>;
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
    const bool vectors = positions_in_lanes(axis);
    const int64_t lo = vectors && axis.full_begin > o0 ? axis.full_begin : o0;
    const int64_t hi = vectors ? at_most(axis.full_end, o1) : o0;
    const int64_t n = hi - lo;
    const auto run = [&](const auto* from) {
        unclipped_positions<R, A>(axis, &from, 1, 0, n, [&](int64_t i, Vec<A> v, Vec<C> code) {
            store<A>(out + lo - o0 + i, v);
            store<C>(codes + lo - o0 + i, code);
        });
    };
    if (n >= lanes<A>) {
        run(line + lo * axis.stride + axis.offset);
    } else if (n > 1) {  // from a copy with slack; what is written too far is overwritten below
        bool found;
        run(copy_line<R, A>(line, extent_of(axis, lo, hi), 0.0, buffer, found));
    }
    for (int64_t o = o0; o < (n > 1 ? lo : o1); ++o) one(o);
    if (n > 1)
        for (int64_t o = hi; o < o1; ++o) one(o);
}

}  // namespace
