// The drivers: which lines are reduced in which order, and what becomes of the states.
#pragma once

#include "within.h"

namespace {

// A line of a single long axis is cut into tasks of this many outputs.
constexpr int64_t kLineChunk = 4096;
// One window over lines is cut into tasks of this many columns.
constexpr int64_t kColumns = 1024;
// Channels-last windows of up to this many positions merge all their pixels at once.
constexpr int64_t kDirectTaps = 16;
constexpr int64_t kMaxDirectTaps = 4096;
// Rows of up to this many outputs that tile without a rest are joined to lines about as long:
// 2x2 on rows of 14 takes a third of the time, on rows of 112 two thirds.
constexpr int64_t kJoinedRow = 256;

// A line of states becomes results: divided (one row's divisor, one for each column), finished,
// narrowed.
template <class R, class A, class O>
POOLKIT_ONCE void finish_line(const A* state, int64_t n, double row, const double* columns,
                              bool uniform, double p, O* out) {
    const auto one = [&](A x, double divisor) -> O {
        if constexpr (same<A, int64_t> && same<O, float>)
            return static_cast<float>(static_cast<double>(x) / divisor) + 0.0f;  // 0 / -2 is -0.0
        else if constexpr (R::positions || same<A, int64_t>)
            return narrow<O>(x);
        else
            return narrow<O>(
                R::finish(divisor == 1.0 ? x : static_cast<A>(x / static_cast<A>(divisor)), p));
    };
    int64_t j = 0;
    if (columns && !uniform) {
        for (; j < n; ++j) out[j] = one(state[j], row * columns[j]);
        return;
    }
    const double divisor = columns ? row * columns[0] : row;
    if constexpr (!same<A, int64_t> && !same<R, SumPower>) {
        const Vec<A> by = broadcast<A>(static_cast<A>(divisor));
        for (; j + lanes<A> <= n; j += lanes<A>) {
            const Vec<A> v = load<A>(state + j);
            if constexpr (R::positions)
                store<A>(out + j, v);
            else
                store<A>(out + j, R::finish(divisor == 1.0 ? v : v / by, p));
        }
    }
    if constexpr (same<R, SumPower> && same<A, float>) {
        for (; p == 3 && j < n; j += lanes<A>) {  // the state has slack behind it
            A roots[lanes<A>];
            store<A>(roots, cube_root(load<A>(state + j) + Vec<A>{}));
            for (int64_t i = 0; i < at_most<int64_t>(lanes<A>, n - j); ++i) {
                const A x = state[j + i];
                const bool usual = !(x > A(0)) || (x >= 0x1p-126f && x < __builtin_inff());
                out[j + i] = usual ? narrow<O>(roots[i]) : one(x, divisor);
            }
        }
    }
    for (; j < n; ++j) out[j] = one(state[j], divisor);
}

template <class C>
POOLKIT_ONCE void store_codes(const C* codes, int64_t n, int64_t positions, int64_t at, void* out) {
    if (positions <= 256)
        for (int64_t j = 0; j < n; ++j)
            static_cast<uint8_t*>(out)[at + j] = static_cast<uint8_t>(codes[j]);
    else if (positions <= 65536)
        for (int64_t j = 0; j < n; ++j)
            static_cast<uint16_t*>(out)[at + j] = static_cast<uint16_t>(codes[j]);
    else
        for (int64_t j = 0; j < n; ++j)
            static_cast<uint32_t*>(out)[at + j] = static_cast<uint32_t>(codes[j]);
}

// How a geometry is walked; the same answer for counting, for scratch and for the work.
enum class Walk {
    lines,    // one long axis, nothing behind it: tasks are pieces of a line
    spans,    // one window over a contiguous axis: tasks are whole lines
    columns,  // one window over an axis with lines behind it: tasks are pieces of a line
    direct,   // lines behind: all the pixels of a window are merged at once
    ring,     // axis by axis, the fastest first
    down,     // two axes: columns first, then along the one line that is left
    joined,   // two axes: rows that windows tile without a rest, as one long line
};

Walk walk_of(const Geometry& g, int64_t inner) {
    const Axis& last = g.axis[g.axes - 1];
    if (g.axes == 1 && inner == 1)
        return last.outputs == 1 && last.step == 1 && last.taps > 8 ? Walk::spans : Walk::lines;
    if (g.axes == 1 && last.outputs == 1) return Walk::columns;
    if (inner == 1) return Walk::ring;
    if (g.axes == 1) return Walk::direct;  // nothing to keep in a ring
    bool disjoint = true;
    for (int a = 0; a < g.axes; ++a) disjoint = disjoint && g.axis[a].disjoint;
    if (g.positions <= kDirectTaps || (disjoint && g.positions <= kMaxDirectTaps))
        return Walk::direct;
    return Walk::ring;
}

int64_t line_pieces(const Axis& axis) { return (axis.outputs + kLineChunk - 1) / kLineChunk; }
int64_t column_pieces(int64_t inner) { return (inner + kColumns - 1) / kColumns; }

int64_t count_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    switch (walk_of(g, inner)) {
        case Walk::lines:
            return outer * line_pieces(g.axis[0]);
        case Walk::spans:
            return outer;
        case Walk::columns:
            return outer * column_pieces(inner);
        default:
            return outer * g.axis[0].outputs;
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
        if (walk == Walk::ring && !Positions && inner == 1 && g.axes == 2)
            walk = tiles(g.axis[1]) && g.axis[0].regular && g.axis[0].step == 1 ? Walk::joined
                                                                                : Walk::down;
        const Axis& row = g.axis[last];
        if (row.outputs > 0) whole_line = extent_of(row, 0, row.outputs);
        int64_t states = inner, line = 0;  // outputs of one task, and of one line
        switch (walk) {
            case Walk::lines:
                states = line = at_most(row.outputs, kLineChunk);
                break;
            case Walk::spans:
                states = lanes<A>;
                break;
            case Walk::columns:
                states = at_most(inner, kColumns);
                break;
            case Walk::direct:
                take_lists(arena, g.positions);
                break;
            case Walk::ring:
                states = length[1];
                line = inner == 1 ? row.outputs : 0;
                take_rings(arena);
                break;
            case Walk::down:
                states = line = row.outputs;
                take_rings(arena);
                column = arena.template take<A>(row.size + slack);
                break;
            case Walk::joined:
                states = row.outputs;
                joined_outputs = at_most(g.axis[0].outputs, 1 + kJoinedRow / row.outputs);
                joined_rows = (joined_outputs - 1) * g.axis[0].stride + g.axis[0].taps;
                joined = arena.template take<A>(joined_rows * row.outputs + slack);
                line = joined_rows * row.outputs;
                break;
        }
        state = arena.template take<A>(states + slack);
        if (Positions) codes = arena.template take<C>(states + slack);
        if (line > 0) buffer = arena.template take<A>(windowed_room<A>(row, line));
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        const S* x = static_cast<const S*>(part.x);
        O* out = static_cast<O*>(part.out);
        switch (walk) {
            case Walk::lines:
                return run_lines(x, out, part);
            case Walk::spans:
                return run_spans(x, out, part);
            case Walk::columns:
                return run_columns(x, out, part);
            case Walk::direct:
                return run_direct(x, out, part);
            case Walk::ring:
                return run_ring(x, out, part);
            case Walk::down:
                return run_down(x, out, part);
            case Walk::joined:
                return run_joined(x, out, part);
        }
    }

  private:
    static constexpr int64_t slack = 2 * lanes<A>;

    // Rows that windows tile without a rest are one long line: short rows fill no vector.
    static bool tiles(const Axis& row) {
        return row.regular && row.offset == 0 && row.full_end == row.outputs &&
               row.stride * row.outputs == row.size && (row.taps - 1) * row.step < row.stride &&
               row.outputs <= kJoinedRow && row.taps <= kLongSpan;
    }

    void take_lists(Arena& arena, int64_t taps) {
        most_taps = taps;
        lines = arena.template take<const A*>(taps * kMaxAxes);
        if (Positions) line_codes = arena.template take<const C*>(taps * kMaxAxes);
    }

    void take_rings(Arena& arena) {
        int64_t taps = 1;
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
        take_lists(arena, taps);
    }

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
    A* column = nullptr;  // a row of merged columns
    Extent whole_line{};
    int64_t joined_outputs = 0, joined_rows = 0;
    A* joined = nullptr;

    // Whether a state is already the result.
    static constexpr bool direct_result = same<A, O> && R::positions;

    double divisor(int a, int64_t o) const {
        return g.axis[a].divisor ? g.axis[a].divisor[o] : 1.0;
    }

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
                within_positions<R, A>(axis, x + line * axis.size, o0, o1, buffer, state, codes);
                store_codes(codes, o1 - o0, g.positions, at, part.positions);
            } else {
                within<R, A>(axis, x + line * axis.size, o0, o1, extent_of(axis, o0, o1),
                             g.exponent, buffer, state);
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
                        if (state[i] == A(0))
                            state[i] = first_zero(from + i * axis.size, n, state[i]);
            } else {
                for (int64_t i = 0; i < left; ++i)
                    state[i] = fold_span<R, A>(from + i * axis.size, n, 1, g.exponent);
            }
            if constexpr (Positions) {
                for (int64_t i = 0; i < left; ++i)
                    codes[i] =
                        static_cast<C>(find_in_span<A>(from + i * axis.size, n, 1, state[i]));
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
            const int64_t slab = task / pieces, j0 = task % pieces * kColumns;
            const int64_t n = at_most(kColumns, inner - j0);
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
                scale *= g.axis[a].taps;
            }
            codes[j] = static_cast<C>(code);
        }
    }

    void run_ring(const S* x, O* out, const Part& part) {
        forget();
        each_row(part, [&](int64_t slab, int64_t o, int64_t at) {
            if constexpr (direct_result && !Positions) {
                reduce_slabs(0, o, x + slab * extent[0], out + at, nullptr);
            } else {
                reduce_slabs(0, o, x + slab * extent[0], state, codes);
                finish_block(1, divisor(0, o), state, out + at);
                if constexpr (Positions)
                    store_codes(codes, length[1], g.positions, at, part.positions);
            }
            return int64_t{1};
        });
    }

    // Calls body(slab, output of the first axis, its place in the result), which says how many
    // outputs it has done.
    template <class Body>
    POOLKIT_INLINE void each_row(const Part& part, Body body) {
        const int64_t outputs = g.axis[0].outputs;
        int64_t slab = part.first / outputs, o = part.first % outputs;
        for (int64_t task = part.first; task < part.last;) {
            const int64_t done = body(slab, o, slab * length[0] + o * length[1]);
            task += done;
            o += done;
            if (o == outputs) o = 0, ++slab;
        }
    }

    // Columns are merged first, so that only one line for each output row is reduced along itself.
    // Where the order shows (a NaN, a -0.0), rows come first as everywhere else.
    void run_down(const S* x, O* out, const Part& part) {
        using Columns = Quick<R, S>;
        const Axis& down = g.axis[0];
        const Axis& row = g.axis[1];
        forget();
        each_row(part, [&](int64_t slab, int64_t o, int64_t at) {
            const S* from = x + slab * extent[0];
            const int64_t count = down.count[o];
            bool rows_first = false;
            if constexpr (scans<R, S>)
                for (int64_t t = 0; t < count; ++t) {
                    const int64_t i = down.begin[o] + t * down.step;
                    rows_first |= order_shows_in(from + i * row.size, i & (rows[0] - 1));
                }
            A* to = state;
            if constexpr (direct_result) to = out + at;
            if (rows_first) {
                for (int64_t t = 0; t < count; ++t) {
                    A* kept = ring[0] + t * stored[0];
                    const S* line = from + (down.begin[o] + t * down.step) * row.size;
                    within<R, A>(row, line, 0, row.outputs, whole_line, g.exponent, buffer, kept);
                }
                const StridedLines<A> window{ring[0], stored[0]};
                across<R, A, false>(window, count, row.outputs, g.exponent, to);
            } else {
                const StridedLines<S> window{from + down.begin[o] * row.size, down.step * row.size};
                across<Columns, A, true>(window, count, row.size, g.exponent, column);
                within<OfStates<Columns>, A>(row, column, 0, row.outputs, whole_line, g.exponent,
                                             buffer, state);
                if constexpr (direct_result) memcpy(to, state, row.outputs * sizeof(A));
            }
            if constexpr (!direct_result)
                finish(state, row.outputs, divisor(0, o), row.divisor, out + at);
            return int64_t{1};
        });
    }

    void forget() {
        for (int a = 0; a < last; ++a)
            for (int64_t i = 0; i < rows[a]; ++i) tag[a][i] = nullptr;
    }

    bool order_shows_in(const S* line, int64_t slot) {
        if (tag[0][slot] != line) {
            broken[0][slot] = order_shows<A>(line, g.axis[1].size);
            tag[0][slot] = line;
        }
        return broken[0][slot];
    }

    void run_joined(const S* x, O* out, const Part& part) {
        each_row(part, [&](int64_t slab, int64_t o, int64_t at) {
            const int64_t left = part.last - (slab * g.axis[0].outputs + o);
            const int64_t n = at_most(at_most(joined_outputs, g.axis[0].outputs - o), left);
            join_rows(x + slab * extent[0], out + at, o, n);
            return n;
        });
    }

    // n output rows from o on, whose input rows are reduced as one line.
    void join_rows(const S* from, O* out, int64_t o, int64_t n) {
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
            if (found)
                across<R, A, false>(window, rows_axis.count[k], width, g.exponent, to);
            else
                across<Quick<R, S>, A, false>(window, rows_axis.count[k], width, g.exponent, to);
            if constexpr (!direct_result)
                finish(state, width, divisor(0, k), g.axis[last].divisor, out);
        }
    }

    // Axes a.. of a block of states, results behind each other.
    void finish_block(int a, double row, const A* from, O* to) {
        if (a > last || a >= kMaxAxes) return finish(from, inner, row, nullptr, to);
        const Axis& axis = g.axis[a];
        if (a == last && inner == 1) return finish(from, axis.outputs, row, axis.divisor, to);
        if (!axis.divisor) return finish(from, length[a], row, nullptr, to);
        for (int64_t o = 0; o < axis.outputs; ++o)
            finish_block(a + 1, row * axis.divisor[o], from + o * length[a + 1],
                         to + o * length[a + 1]);
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
            across_positions<R, A>(window, slab_codes, count, radix(a), length[a + 1], to,
                                   to_codes);
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
            if constexpr (Positions)
                within_positions<R, A>(axis, from, 0, axis.outputs, buffer, to, to_codes);
            else
                may_break =
                    within<R, A>(axis, from, 0, axis.outputs, whole_line, g.exponent, buffer, to);
        } else {
            for (int64_t o = 0; o < axis.outputs; ++o) {
                const StridedLines<S> window{from + axis.begin[o] * inner, axis.step * inner};
                if constexpr (Positions)
                    across_positions<R, A>(window, nullptr, axis.count[o], 1, inner, to + o * inner,
                                           to_codes + o * inner);
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
    // Tasks are counted for another walk: each is an even share of the results.
    const int64_t tasks = count_tasks(g, part.outer, part.inner);
    const int64_t all = part.outer * results * part.inner;
    const auto share = [&](int64_t task) {
        return all / tasks * task + all % tasks * task / tasks;
    };
    for (int64_t item = share(part.first); item < share(part.last); ++item) {
        const int64_t column = item % part.inner, outer = item / part.inner / results;
        int64_t o[kMaxAxes] = {};
        for (int64_t a = g.axes - 1, rest = item / part.inner % results; a >= 0; --a) {
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
            const A v = static_cast<A>(widen(x[(outer * plane + at) * part.inner + column]));
            if (best_code < 0 || R::replaces(best, v)) best = v, best_code = code;
        }
        const int64_t code = best_code;
        out[item] = narrow<S>(best);
        store_codes(&code, 1, g.positions, item, part.positions);
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

}  // namespace
