// The walk of reductions that need all values of a window (whole.h). Nothing is unfolded: lanes are
// neighbouring windows, and what they see are lines of the input as they lie,
//
//   rows      windows along a contiguous axis: value t of all of them is the row from t on; rows of
//             strides 2 to 4 are dealt out to as many lines first;
//   pixels    channels behind: value t is pixel t;
//   cells     what is left of small windows (clipped ones, those of adaptive windows, short rows):
//             the values of as many windows as there are lanes are written beside each other;
//   a line    what is left of large ones, one by one.
//
// A window is one of cells, pixels or rows, lane by lane the same, or a line, by its size and the
// axis alone: results have the same bits on every instruction set.
#pragma once

#include "medians.h"

namespace {

// Outputs of a row that one task does, and channels.
constexpr int64_t kBlock = 1024;
constexpr int64_t kChannels = 256;
// Larger windows do not go through cells.
constexpr int64_t kCells = kSorted;
// Rows of larger strides are not dealt out.
constexpr int64_t kMostStride = 4;
// Large windows are taken as rows where this many are not clipped.
constexpr int64_t kFewWindows = 4;

int64_t gather_blocks(const Geometry& g, int64_t inner) {
    if (inner > 1) return (inner + kChannels - 1) / kChannels;
    return (g.axis[g.axes - 1].outputs + kBlock - 1) / kBlock;
}
// Outputs of the first axis are tasks of their own unless it is cut into blocks.
int64_t gather_rows(const Geometry& g, int64_t inner) {
    return g.axes == 1 && inner == 1 ? 1 : g.axis[0].outputs;
}
int64_t count_gather_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    return outer * gather_rows(g, inner) * gather_blocks(g, inner);
}

// R over S, to O.
template <class R, class S, class O>
class Gather {
  public:
    using W = typename R::template Accumulator<S>;   // of the values of a line
    using A = typename OrderedAccumulator<S>::type;  // of the values of lanes
    using F = Real<S>;                               // of the results

    Gather(const Geometry& geometry, const Part& part, Arena arena)
        : g(geometry), last(geometry.axes - 1), inner(part.inner), row(geometry.axis[last]) {
        extent[g.axes] = inner;
        length[g.axes] = inner;
        most_rows = 1;
        for (int a = last; a >= 0; --a) {
            extent[a] = extent[a + 1] * g.axis[a].size;
            length[a] = length[a + 1] * g.axis[a].outputs;
            if (a < last) most_rows *= at_least_one(g.axis[a].taps);
        }
        end = static_cast<const S*>(part.x) + part.outer * extent[0];
        const int64_t taps = at_least_one(row.taps);
        rows = arena.template take<const S*>(most_rows);
        dealt_rows = arena.template take<const A*>(most_rows);
        offset = arena.template take<int64_t>(taps);
        dealt_offset = arena.template take<int64_t>(taps);
        cells = arena.template take<A>(kCells * lanes<A>);
        cell_offset = arena.template take<int64_t>(kCells);
        to = arena.template take<O*>(lanes<A>);
        const int64_t outputs = at_most(row.outputs, kBlock);
        if (inner == 1 && row.regular && row.stride > 1 && row.stride <= kMostStride) {
            dealt_length = outputs + (taps - 1) * row.step / row.stride + 1 + 2 * lanes<A>;
            dealt = arena.template take<A>(most_rows * row.stride * dealt_length);
        } else {  // the last row of all, with room behind it
            tail_length =
                (inner == 1 ? outputs - 1 : inner - 1) + (taps - 1) * row.step * inner + 1;
            tail = arena.template take<S>(most_rows * (tail_length + lanes<A>));
        }
        if (slides())
            columns = arena.template take<A>(SortedColumns<5>::lines *
                                             (outputs + most_rows * row.step + lanes<A>));
        if (inner == 1 && most_rows * taps > kCells && !in_one_piece())
            line = arena.template take<W>(most_rows * taps);
        bytes = arena.used;
        numbers = {g.exponent, g.second};
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        const int64_t blocks = gather_blocks(g, inner), outputs = gather_rows(g, inner);
        memset(cells, 0, kCells * lanes<A> * sizeof(A));
        for (int64_t i = 0; i < kCells; ++i) cell_offset[i] = i * lanes<A>;
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t slab = task / blocks / outputs;
            const int64_t first = task % blocks * (inner > 1 ? kChannels : kBlock);
            const S* x = static_cast<const S*>(part.x) + slab * extent[0];
            O* out = static_cast<O*>(part.out) + slab * length[0];
            int64_t o[kMaxAxes] = {g.axes == 1 && inner == 1 ? 0 : task / blocks % outputs, 0, 0};
            if (inner > 1)
                each_output(1, g.axes, o, [&] {
                    pixels(x, o, first, at_most(first + kChannels, inner), out + place(o));
                });
            else
                each_output(1, last, o, [&] {
                    o[last] = 0;
                    outputs_of_row(x, o, first, at_most(first + kBlock, row.outputs),
                                   out + place(o));
                });
        }
        flush();
    }

  private:
    static int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

    // Whether a window is one run of values that need no conversion.
    bool in_one_piece() const { return same<S, W> && g.axes == 1 && row.step == 1; }

    // Whether windows are those of `sliding_medians`, where they are not clipped.
    bool slides() const {
        return R::medians && g.exponent == 0.5 && inner == 1 && row.regular && row.stride == 1 &&
               most_rows == row.taps && (row.taps == 3 || row.taps == 5);
    }

    const Geometry& g;
    int last;
    int64_t inner;
    const Axis& row;  // the last axis
    int64_t extent[kMaxAxes + 1], length[kMaxAxes + 1];
    int64_t most_rows;
    const S* end;
    const S** rows;
    int64_t row_count = 0;
    const A** dealt_rows;
    int64_t *offset, *dealt_offset, *cell_offset;
    A *cells, *dealt = nullptr, *columns = nullptr;
    S* tail = nullptr;
    int64_t dealt_length = 0, tail_length = 0;
    W* line = nullptr;
    O** to;
    int filled = 0;
    int64_t filled_count = 0;
    Numbers numbers;

    int64_t place(const int64_t* o) const {
        int64_t at = 0;
        for (int a = 0; a < g.axes; ++a) at += o[a] * length[a + 1];
        return at;
    }

    // Calls body() for all outputs of axes [a, stop).
    template <class Body>
    void each_output(int a, int stop, int64_t* o, Body body) {
        if (a >= stop) return body();
        for (o[a] = 0; o[a] < g.axis[a].outputs; ++o[a]) each_output(a + 1, stop, o, body);
    }

    // The rows that output o sees.
    void list_rows(const S* x, const int64_t* o) {
        rows[0] = x;
        row_count = 1;
        for (int a = 0; a < last; ++a) {
            const Axis& axis = g.axis[a];
            const int64_t taps = axis.count[o[a]];
            // In place, from the back: every row so far becomes `taps` rows.
            for (int64_t i = row_count - 1; i >= 0; --i) {
                const S* base = rows[i] + axis.begin[o[a]] * extent[a + 1];
                for (int64_t t = taps - 1; t >= 0; --t)
                    rows[i * taps + t] = base + t * axis.step * extent[a + 1];
            }
            row_count *= taps;
        }
    }

    // Results that are not those of a whole vector: those of lanes [from, from + n).
    void put(const F* results, int64_t n, O* out) {
        for (int64_t i = 0; i < n; ++i) out[i] = narrow<O>(results[i]);
    }
    template <class L>
    void put_vector(const Taps<L>& window, int64_t column, O* out) {
        if constexpr (same<O, F>) {
            R::template lanes_of<F>(window, column, numbers, out);
        } else {
            F results[lanes<A>];
            R::template lanes_of<F>(window, column, numbers, results);
            for (int i = 0; i < lanes<A>; i += lanes<F>)
                if constexpr (lanes<A> >= lanes<F>) store<F>(out + i, load<F>(results + i));
        }
    }

    template <class L>
    void put_vectors(const Taps<L>& window, int64_t column, O* out) {
        if constexpr (same<O, F>) {
            R::template several_lanes_of<F>(window, column, numbers, out);
        } else {
            F results[R::together * lanes<F>];
            R::template several_lanes_of<F>(window, column, numbers, results);
            for (int i = 0; i < R::together * lanes<F>; i += lanes<F>)
                store<F>(out + i, load<F>(results + i));
        }
    }

    // n windows, beside each other at the columns from `column` on.
    template <class L>
    void put_windows(const Taps<L>& window, int64_t column, int64_t n, O* out) {
        constexpr int64_t width = lanes<A>;
        int64_t i = 0;
        if constexpr (R::together > 1)
            for (; i + R::together * width <= n; i += R::together * width)
                put_vectors(window, column + i, out + i);
        for (; i + width <= n; i += width) put_vector(window, column + i, out + i);
        if (i == n) return;
        F results[width];
        const int64_t back = i > 0 ? width - (n - i) : 0;  // windows that are done come again
        R::template lanes_of<F>(window, column + i - back, numbers, results);
        put(results + back, n - i, out + i);
    }

    // Loads for the last window may run over the end of the input: those rows are copied.
    void guard_rows(int64_t reach) {
        for (int64_t r = 0; r < row_count; ++r) {
            if (rows[r] + reach + lanes<A> <= end) continue;
            S* copy = tail + r * (tail_length + lanes<A>);
            memset(copy + reach, 0, lanes<A> * sizeof(S));
            memcpy(copy, rows[r], reach * sizeof(S));
            rows[r] = copy;
        }
    }

    void nothing_seen(int64_t n, O* out) {
        for (int64_t i = 0; i < n; ++i) out[i] = narrow<O>(R::template nothing<F>);
    }

    // Channels [c0, c1) of one output.
    void pixels(const S* x, const int64_t* o, int64_t c0, int64_t c1, O* out) {
        list_rows(x, o);
        const int64_t taps = row.count[o[last]], count = row_count * taps;
        if (count == 0) return nothing_seen(c1 - c0, out + c0);
        for (int64_t r = 0; r < row_count; ++r) rows[r] += row.begin[o[last]] * inner;
        const int64_t n = c1 - c0;
        if (2 * n < lanes<A> && count <= kCells) {
            for (int64_t c = c0; c < c1; ++c) add_cell(taps, row.step * inner, c, out + c);
            return;
        }
        if (n < lanes<A>) {
            for (int64_t r = 0; r < row_count; ++r) rows[r] += c0;
            guard_rows((taps - 1) * row.step * inner + n);
            out += c0;
            c0 = 0;
        }
        for (int64_t t = 0; t < taps; ++t) offset[t] = t * row.step * inner;
        put_windows(Taps<S>{rows, row_count, offset, taps}, c0, n, out + c0);
    }

    // Outputs [b0, b1) of the last axis.
    void outputs_of_row(const S* x, const int64_t* o, int64_t b0, int64_t b1, O* out) {
        list_rows(x, o);
        if (row_count == 0) return nothing_seen(b1 - b0, out + b0);
        int64_t lo = b1, hi = b1;
        if (row.regular && row.stride <= kMostStride) {
            lo = b0 > row.full_begin ? at_most(b0, b1) : at_most(row.full_begin, b1);
            hi = at_most(b1, row.full_end);
            const bool few = row_count * row.taps <= kCells
                                 ? 2 * (hi - lo) < lanes<A>
                                 : row.full_end - row.full_begin < kFewWindows;
            if (few || hi <= lo) lo = hi = b1;
        }
        for (int64_t b = b0; b < lo; ++b) single(b, out + b);
        for (int64_t b = hi; b < b1; ++b) single(b, out + b);
        if (lo < hi) unclipped_windows(lo, hi - lo, out + lo);
    }

    void single(int64_t b, O* out) {
        const int64_t taps = row.count[b], count = row_count * taps, begin = row.begin[b];
        if (count == 0) return nothing_seen(1, out);
        if (count <= kCells) return add_cell(taps, row.step, begin, out);
        if constexpr (same<S, W>) {
            if (row_count == 1 && row.step == 1) {
                *out = narrow<O>(R::template line<F>(rows[0] + begin, taps, numbers));
                return;
            }
        }
        W* next = line;
        for (int64_t r = 0; r < row_count; ++r)
            for (int64_t t = 0; t < taps; ++t)
                *next++ = static_cast<W>(widen(rows[r][begin + t * row.step]));
        *out = narrow<O>(R::template line<F>(static_cast<const W*>(line), count, numbers));
    }

    // One more window for the cells: taps at a distance, from `begin` on of every row.
    void add_cell(int64_t taps, int64_t distance, int64_t begin, O* out) {
        const int64_t count = row_count * taps;
        if (filled > 0 && count != filled_count) flush();
        filled_count = count;
        A* cell = cells + filled;
        for (int64_t r = 0; r < row_count; ++r) {
            const S* from = rows[r] + begin;
            for (int64_t t = 0; t < taps; ++t, cell += lanes<A>)
                *cell = static_cast<A>(widen(from[t * distance]));
        }
        to[filled++] = out;
        if (filled == lanes<A>) flush();
    }

    void flush() {
        if (filled == 0) return;
        const A* base = cells;
        F results[lanes<A>];
        R::template lanes_of<F>(Taps<A>{&base, 1, cell_offset, filled_count}, 0, numbers, results);
        for (int i = 0; i < filled; ++i) *to[i] = narrow<O>(results[i]);
        filled = 0;
    }

    // n windows from output lo on, none of which is clipped.
    void unclipped_windows(int64_t lo, int64_t n, O* out) {
        const int64_t stride = row.stride, taps = row.taps, start = lo * stride + row.offset;
        if (stride == 1) {
            for (int64_t r = 0; r < row_count; ++r) rows[r] += start;
            if (n < lanes<A>) guard_rows((taps - 1) * row.step + n);
            if constexpr (R::medians)
                if (columns && row_count == taps && n >= lanes<A> && put_medians(n, out)) return;
            for (int64_t t = 0; t < taps; ++t) offset[t] = t * row.step;
            put_windows(Taps<S>{rows, row_count, offset, taps}, 0, n, out);
            return;
        }
        const int64_t reach = (n - 1) * stride + (taps - 1) * row.step + 1;
        for (int64_t r = 0; r < row_count; ++r) {
            dealt_rows[r] = dealt + r * stride * dealt_length;
            deal(rows[r] + start, reach, dealt + r * stride * dealt_length);
        }
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t at = t * row.step;
            dealt_offset[t] = at % stride * dealt_length + at / stride;
        }
        put_windows(Taps<A>{dealt_rows, row_count, dealt_offset, taps}, 0, n, out);
    }

    // Whether there was no NaN, and all is done.
    bool put_medians(int64_t n, O* out) {
        F* results = nullptr;
        F block[same<O, F> ? 1 : kBlock];
        if constexpr (same<O, F>)
            results = out;
        else
            results = block;
        const bool broken = row.taps == 3
                                ? sliding_medians<A, F, 3>(rows, row.step, n, columns, results)
                                : sliding_medians<A, F, 5>(rows, row.step, n, columns, results);
        if (!broken && !same<O, F>) put(results, n, out);
        return !broken;
    }

    // Every stride-th value to one line, and zeros behind.
    void deal(const S* from, int64_t reach, A* lines) {
        constexpr int64_t width = lanes<A>;
        const int64_t stride = row.stride;
        int64_t i = 0;
        for (; (i + width) * stride <= reach; i += width) {
            const S* at = from + i * stride;
            Vec<A> v[kMostStride];
            for (int64_t m = 0; m < stride; ++m) v[m] = load<A>(at + m * width);
            const auto write = [&](int64_t phase, Vec<A> dealt_out) {
                store<A>(lines + phase * dealt_length + i, dealt_out);
            };
            if (stride == 2) {
                write(0, even<A>(v[0], v[1]));
                write(1, odd<A>(v[0], v[1]));
            } else if (stride == 3) {
                write(0, every<A, 3, 0>(v));
                write(1, every<A, 3, 1>(v));
                write(2, every<A, 3, 2>(v));
            } else {
                write(0, every<A, 4, 0>(v));
                write(1, every<A, 4, 1>(v));
                write(2, every<A, 4, 2>(v));
                write(3, every<A, 4, 3>(v));
            }
        }
        for (int64_t phase = 0; phase < stride; ++phase) {
            A* to_line = lines + phase * dealt_length;
            int64_t j = i;
            for (; j * stride + phase < reach; ++j)
                to_line[j] = static_cast<A>(widen(from[j * stride + phase]));
            for (const int64_t stop = at_most(j + width, dealt_length); j < stop; ++j)
                to_line[j] = A(0);
        }
    }
};

template <class R, class S, class O>
int64_t gather_scratch(const Geometry& g, int64_t inner, bool) {
    Part none{};
    none.inner = inner;
    return Gather<R, S, O>(g, none, Arena{nullptr}).bytes;
}
template <class R, class S, class O>
void gather(const Geometry& g, const Part& part) {
    Gather<R, S, O>(g, part, Arena{static_cast<char*>(part.scratch)}).run(part);
}

}  // namespace
