// The drivers: which lines are reduced in which order, and what becomes of the states.
#pragma once

#include "requantize.h"
#include "within.h"

namespace {

// A line of a single long axis is cut into tasks of this many outputs.
constexpr int64_t kLineChunk = 4096;
// One window over lines is cut into tasks of this many columns.
constexpr int64_t kColumns = 1024;
// Channels-last windows of up to this many positions merge all their pixels at once.
constexpr int64_t kDirectTaps = 16;
constexpr int64_t kMaxDirectTaps = 4096;
// Longer rows are not turned: as many as there are lanes would leave the first level of the cache.
constexpr int64_t kTurnedColumns = 512;
// Rows of fewer results that are divided by different numbers are turned: 3x3 without padding
// counted takes 0.55 of the time of divisions one by one at 14 results, and 1.5 times as long
// at 56.
constexpr int64_t kFewResults = 16;

// Divides by one number; by a power of two as a product with its reciprocal, which has the same
// bits.
template <class A>
struct Divider {
    bool multiplies = true;
    Vec<A> factor;

    explicit Divider([[maybe_unused]] double by) : factor{} {
        if constexpr (is_float<A>) {
            multiplies = !(bit_cast<uint64_t>(by) << 12) && by >= 1.0 && by <= 0x1p20;
            factor = broadcast<A>(static_cast<A>(multiplies ? 1.0 / by : by));
        }
    }
    POOLKIT_INLINE Vec<A> operator()(Vec<A> v) const {
        if constexpr (!is_float<A>) return v;
        return multiplies ? v * factor : v / factor;
    }
};

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
        const Divider<A> divided(divisor);
        for (; j + lanes<A> <= n; j += lanes<A>) {
            const Vec<A> v = load<A>(state + j);
            if constexpr (R::positions)
                store<A>(out + j, v);
            else
                store<A>(out + j, R::finish(divided(v), p));
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
    down,     // columns first, then along the one line that is left
    windows,  // whole windows in registers, with positions
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
        : g(geometry), inner(inner_size), last(geometry.axes - 1), requantizer(geometry) {
        length[g.axes] = inner;
        extent[g.axes] = inner;
        for (int a = last; a >= 0; --a) {
            length[a] = length[a + 1] * g.axis[a].outputs;
            extent[a] = extent[a + 1] * g.axis[a].size;
        }
        walk = walk_of(g, inner);
        if (walk == Walk::ring && !Positions && inner == 1 && (g.axes == 2 || g.axis[0].taps <= 4))
            walk = Walk::down;
        if (walk == Walk::ring && Positions && windows_in_registers()) walk = Walk::windows;
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
                offsets = arena.template take<int64_t>(g.positions);
                break;
            case Walk::ring:
                states = length[1];
                line = inner == 1 ? row.outputs : 0;
                take_rings(arena);
                break;
            case Walk::down:
                states = line = row.outputs;
                take_block(arena);
                break;
            case Walk::windows:
                take_lists(arena, g.axis[0].taps);
                inputs = arena.template take<const S*>(g.axis[0].taps);
                copied = row.stride * lanes<A> + row.taps * row.step + 2 * lanes<A>;
                nothing = arena.template take<S>(g.axis[0].taps * copied);
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
            case Walk::windows:
                return run_windows(x, out, part);
        }
    }

  private:
    static constexpr int64_t slack = 2 * lanes<A>;

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

    // Merged columns of a block of output rows: they stay in the L1 cache, with the inputs.
    static constexpr int64_t kBlock = 2 * 1024 / sizeof(A);

    void take_block(Arena& arena) {
        const Axis& down = g.axis[last - 1];
        const Axis& row = g.axis[last];
        if (!row.regular) whole_line = Extent{0, row.size, 0, row.size, 0};
        pitch = round_up(whole_line.reach, lanes<A>);
        for (int a = 0; a < last; ++a) rows_alike = rows_alike && divides_alike(g.axis[a]);
        turned = turns_rows();
        // Rows that are tiled by their windows are one long line of windows.
        joined = !turned && row.regular && row.step == 1 && row.stride > 1 &&
                 row.taps <= row.stride && row.taps <= kLongSpan && whole_line.before == 0 &&
                 row.size == row.outputs * row.stride && divides_alike(row) && rows_alike &&
                 (in_lanes || fixed_point);
        if (joined) pitch = row.size;
        const int64_t most = 1 + kBlock / pitch;
        piece = 1;
        if (down.regular) {
            // Lines that two blocks see are read twice: large windows want large blocks.
            const int64_t shared = (down.taps - 1) * down.step + 1 - down.stride;
            piece = at_most(down.outputs, most < 2 * shared ? 2 * shared : most);
            listed = (piece - 1) * down.stride + (down.taps - 1) * down.step + 1;
        } else {
            if (in_order(down)) piece = at_most(down.outputs, most);
            listed = down.size;
        }
        block = piece < most ? most : piece;
        if (turned) block = round_up(block, lanes<A>);
        const int64_t slabs = last == 2 ? g.axis[0].taps : 1;
        // Behind the last row: what a vector, a window or a ladder may read further.
        const int64_t behind = row.taps * row.step + 8 * lanes<A>;
        inputs = arena.template take<const S*>(listed * slabs);
        picked = arena.template take<const S*>(piece * down.taps * slabs);
        nothing = arena.template take<S>(row.size + slack);
        divisors = arena.template take<double>(block);
        column = arena.template take<A>(block * pitch + behind);
        wide =
            arena.template take<A>(block * (round_up(row.outputs, lanes<A>) + pitch) + 2 * behind);
        if (doubles_down()) area = arena.template take<A>(listed * pitch + behind);
        if (turned) {
            rows_turned = arena.template take<A>(pitch * lanes<A>);
            results_turned = arena.template take<A>((row.outputs + lanes<A>)*lanes<A>);
        }
        kept = arena.template take<A>(slabs * down.taps * round_up(row.outputs + slack, lanes<A>));
    }

    // Whether rows are turned, so that lanes are rows: no shuffle serves their windows. Measured,
    // AVX-512, one thread, of the time of window after window: adaptive 24 to 7 0.38, 14 to 5 0.34,
    // 112 to 50 0.5; 7x7 at stride 5 0.55; 11x11 at stride 4 0.32.
    bool turns_rows() const {
        const Axis& row = g.axis[last];
        const bool pairs = row.stride == 2 && row.step == 1 && row.taps >= 2;
        const bool shuffled =
            row.stride == 1 || (row.taps <= kLongSpan && (pairs || picks_lanes(row)));
        const bool divided = !in_lanes || divides_alike(row) || row.outputs >= kFewResults;
        return !(row.regular && shuffled && divided) && row.size <= kTurnedColumns;
    }

    // Whether no window begins or ends in front of the one before it.
    static bool in_order(const Axis& axis) {
        for (int64_t o = 0; o < axis.outputs; ++o) {
            if (axis.count[o] == 0) return false;
            if (o > 0 &&
                (axis.begin[o] < axis.begin[o - 1] || end_of(axis, o) < end_of(axis, o - 1)))
                return false;
        }
        return true;
    }
    static int64_t end_of(const Axis& axis, int64_t o) {
        return axis.begin[o] + (axis.count[o] - 1) * axis.step + 1;
    }

    const Geometry& g;
    int64_t inner;
    int last;
    typename Choose<requantizes<R>, Requantizer, Nothing>::type requantizer;
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
    int64_t* offsets = nullptr;  // of the pixels of a window
    A* state = nullptr;
    C* codes = nullptr;
    A* buffer = nullptr;
    Extent whole_line{};
    // Of a block of output rows, which is made of pieces of one plane:
    int64_t block = 0, piece = 0, pitch = 0, listed = 0;
    int64_t held = 0;            // rows of the block whose columns are merged,
    O* held_out = nullptr;       // where their results belong,
    double* divisors = nullptr;  // and what each is divided by
    bool rows_alike = true;      // they all are divided by the same
    bool joined = false;         // nothing is between two rows
    bool turned = false;         // lanes are rows
    const S** inputs = nullptr;  // the lines that it sees, slab by slab
    const S** picked = nullptr;  // those of each output
    int64_t copied = 0;          // room for one of them
    S* nothing = nullptr;        // a line of padding
    A* column = nullptr;         // merged columns, one row for each output row
    A* wide = nullptr;           // rows that are not yet results
    A* rows_turned = nullptr;    // as many rows as lanes, column by column
    A* results_turned = nullptr;
    A* area = nullptr;  // lifted lines
    A* kept = nullptr;  // lines reduced along themselves

    // Whether a state is already the result.
    static constexpr bool direct_result = same<A, O> && R::positions;
    // Whether a vector of states becomes a vector of results.
    static constexpr bool in_lanes = !same<A, int64_t> && !same<R, SumPower> && !requantizes<R>;

    // Whether a state may become its result in a few steps of 16 bits.
    static constexpr bool fixed_point = requantizes<R> && same<A, int16_t>;

    static bool divides_alike(const Axis& axis) { return !axis.divisor || axis.divisor_uniform; }

    double divisor(int a, int64_t o) const {
        return g.axis[a].divisor ? g.axis[a].divisor[o] : 1.0;
    }

    double divisor_of(const int64_t* o) const {
        double product = 1.0;
        for (int a = 0; a < g.axes; ++a) product *= divisor(a, o[a]);
        return product;
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
                // Straight to the result where nothing is written behind it.
                const bool doubling = axis.stride == 1 && axis.taps >= kDoubling;
                A* to = state;
                if constexpr (direct_result)
                    if (!doubling && o1 - o0 >= lanes<A>) to = out + at;
                within<R, A>(axis, x + line * axis.size, o0, o1, extent_of(axis, o0, o1),
                             g.exponent, buffer, to);
                if (to != state) continue;
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
        const int64_t behind = length[1] / inner;  // output pixels of one task
        const int64_t taps = list_taps();
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t slab = task / outputs;
            const S* from = x + slab * extent[0];
            for (int64_t pixel = 0; pixel < behind;) {
                int64_t o[kMaxAxes] = {task % outputs, 0, 0};
                for (int64_t a = last, rest = pixel; a > 0; --a) {
                    o[a] = rest % g.axis[a].outputs;
                    rest /= g.axis[a].outputs;
                }
                int64_t at = slab * length[0] + (o[0] * behind + pixel) * inner;
                // Windows that are not clipped, up to the end of a line, see the same offsets.
                int64_t run = taps > 0 ? g.axis[last].full_end - o[last] : 0;
                const S* corner = from;
                for (int a = 0; a < g.axes; ++a) {
                    const Axis& axis = g.axis[a];
                    if (o[a] < axis.full_begin || o[a] >= axis.full_end) run = 0;
                    corner += (o[a] * axis.stride + axis.offset) * extent[a + 1];
                }
                if (last == 0) run = at_most<int64_t>(run, 1);
                pool_run(corner, run, taps, o, out, at, part.positions);
                pixel += run;
                if (run > 0) continue;
                if (last == 0 && !Positions) {
                    pool_lines(from, o, out + at);
                    ++pixel;
                    continue;
                }
                bool clipped = false;
                const int64_t count = list_pixels(from, o, clipped);
                const ListedLines<S> window{reinterpret_cast<const S**>(lines)};
                pool_pixels(window, count, o, clipped, out, at, part.positions);
                ++pixel;
            }
        }
    }

    // The pixels of a window that is not clipped, relative to its first one: how many they are, or
    // 0 unless all axes have such windows at even distances.
    int64_t list_taps() {
        int64_t count = 1;
        offsets[0] = 0;
        for (int a = 0; a < g.axes; ++a) {
            const Axis& axis = g.axis[a];
            if (!axis.regular) return 0;
            for (int64_t i = count - 1; i >= 0; --i)
                for (int64_t t = axis.taps - 1; t >= 0; --t)
                    offsets[i * axis.taps + t] = offsets[i] + t * axis.step * extent[a + 1];
            count *= axis.taps;
        }
        return count;
    }

    // The pixels that an output sees; how many they are.
    int64_t list_pixels(const S* from, const int64_t* o, bool& clipped) {
        const S** pixels = reinterpret_cast<const S**>(lines);
        int64_t count = 1;
        pixels[0] = from;
        for (int a = 0; a < g.axes; ++a) {
            const Axis& axis = g.axis[a];
            const int64_t taps = axis.count[o[a]];
            clipped = clipped || taps != axis.taps;
            // In place, from the back: every pixel so far becomes `taps` pixels.
            for (int64_t i = count - 1; i >= 0; --i) {
                const S* base = pixels[i] + axis.begin[o[a]] * extent[a + 1];
                for (int64_t t = taps - 1; t >= 0; --t)
                    pixels[i * taps + t] = base + t * axis.step * extent[a + 1];
            }
            count *= taps;
        }
        return count;
    }

    // `run` windows side by side, the first of output o, none of them clipped.
    POOLKIT_INLINE void pool_run(const S* corner, int64_t run, int64_t taps, int64_t* o, O* out,
                                 int64_t at, void* positions) {
        const Axis& axis = g.axis[last];
        const int64_t apart = axis.stride * extent[last + 1];
        if constexpr (in_lanes && !Positions) {
            if (divides_alike(axis)) {
                const Divider<A> divided(divisor_of(o));
                for (int64_t i = 0; i < run; ++i, at += inner, corner += apart)
                    across_to<R, A, true>(OffsetLines<S>{corner, offsets}, taps, inner, g.exponent,
                                          put_to(out + at, inner, divided));
                return;
            }
        }
        for (int64_t i = 0; i < run; ++i, at += inner, corner += apart, ++o[last])
            pool_pixels(OffsetLines<S>{corner, offsets}, taps, o, false, out, at, positions);
    }

    // The pixels of output o of a single axis, which lie a step apart: none is listed, so that long
    // segments of rows cost what it costs to read them.
    void pool_lines(const S* from, const int64_t* o, O* to) {
        const Axis& axis = g.axis[0];
        const StridedLines<S> pixels{from + axis.begin[o[0]] * inner, axis.step * inner};
        if constexpr (direct_result) {
            across<R, A, true>(pixels, axis.count[o[0]], inner, g.exponent, to);
        } else {
            across<R, A, true>(pixels, axis.count[o[0]], inner, g.exponent, state);
            finish(state, inner, divisor_of(o), nullptr, to);
        }
    }

    template <class Window>
    POOLKIT_INLINE void pool_pixels(const Window& window, int64_t count, const int64_t* o,
                                    bool clipped, O* out, int64_t at, void* positions) {
        const double by = divisor_of(o);
        if constexpr (Positions) {
            A* to = state;
            if constexpr (same<A, O>) to = out + at;
            across_positions<R, A>(window, nullptr, count, 1, inner, to, codes);
            if (clipped) recode(o);
            store_codes(codes, inner, g.positions, at, positions);
            if constexpr (!same<A, O>) finish(state, inner, by, nullptr, out + at);
        } else if constexpr (in_lanes) {
            across_to<R, A, true>(window, count, inner, g.exponent,
                                  put_to(out + at, inner, Divider<A>(by)));
        } else {
            if constexpr (fixed_point) {
                requantizer.use(by);
                if (requantizer.fixed.bits)
                    return across_to<R, A, true>(window, count, inner, g.exponent,
                                                 requantizer.put_fixed(out + at, inner));
            }
            across<R, A, true>(window, count, inner, g.exponent, state);
            finish(state, inner, by, nullptr, out + at);
        }
    }

    // Vectors of states become results; the lanes behind the last of n are not written. A row may
    // be written over the beginning of the next, which comes later.
    auto put_to(O* to, int64_t n, const Divider<A>& divided) {
        return [=, this](int64_t i, Vec<A> v) {
            if constexpr (!R::positions) v = R::finish(divided(v), g.exponent);
            store_upto<A>(to, i, n, v);
        };
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

    // Rows that are seen by one or two rows of outputs are read anew for each: to keep what was
    // found in them costs more than to find it again.
    bool windows_in_registers() const {
        if (inner != 1 || g.axes != 2 || g.positions > 256) return false;
        const Axis& down = g.axis[0];
        return positions_in_lanes(g.axis[1]) && g.axis[1].taps <= 4 && down.taps <= 4 &&
               (down.disjoint || (down.regular && down.taps <= 2 * down.stride));
    }

    void run_windows(const S* x, O* out, const Part& part) {
        if constexpr (Positions) {
            const Axis& down = g.axis[0];
            const Axis& row = g.axis[1];
            const int64_t lo = row.full_begin, hi = row.full_end, n = hi > lo ? hi - lo : 0;
            const int64_t first = lo * row.stride + row.offset, radix = row.taps;
            uint8_t* places = static_cast<uint8_t*>(part.positions);
            const S* behind = x + part.outer * extent[0];
            const int64_t outputs_end = part.last * row.outputs;
            // To look for a NaN costs more than it saves where taps are few.
            const bool watching = scans<R, S> && row.taps > 2;
            const S* before = x;  // where the last window began,
            const S* looked = x;  // how far lines have been looked through,
            const S* broken = scans<R, S> && !watching ? behind : nullptr;  // the last with a NaN
            each_row(part, [&](int64_t plane, int64_t o, int64_t at) {
                const S* base = x + plane * extent[0] + down.begin[o] * row.size;
                const int64_t count = down.count[o];
                const S* end = base + ((count - 1) * down.step + 1) * row.size;
                // A window of distant taps, clipped in front, may begin behind the next one.
                if (base < before || looked < base) looked = base;
                before = base;
                for (; looked < end; looked += row.size) {
                    if (!watching)
                        fetch(looked, row.size);
                    else if (has_nan<A>(looked, row.size) && broken < looked + row.size)
                        broken = looked + row.size;
                }
                for (int64_t t = 0; t < count; ++t)
                    inputs[t] = base + t * down.step * row.size + first;
                // Fewer windows than lanes read beyond them, and only from memory that is there.
                const bool few = n < lanes<A>;
                if (few && n > 0 && inputs[count - 1] + copied > behind) {
                    const int64_t seen = (n - 1) * row.stride + (row.taps - 1) * row.step + 1;
                    for (int64_t t = 0; t < count; ++t) {
                        memcpy(nothing + t * copied, inputs[t], seen * sizeof(S));
                        inputs[t] = nothing + t * copied;
                    }
                }
                const auto put = [&](int64_t i, Vec<A> v, Vec<C> code) {
                    const int64_t to = at + lo + i, left = few ? n : outputs_end - to;
                    if (to + lanes<A> <= outputs_end) {  // what is written too far comes later
                        store<A>(out + to, v);
                        store_bytes<C>(places + to, code);
                    } else {
                        uint8_t bytes[lanes<C>];
                        store_bytes<C>(bytes, code);
                        store_upto<A>(out + to, 0, left, v);
                        memcpy(places + to, bytes, at_most<int64_t>(left, lanes<C>));
                    }
                };
                const auto find = [&](auto reduction) {
                    using Q = decltype(reduction);
                    if (n > 0) unclipped_positions<Q, A>(row, inputs, count, radix, n, put);
                    for (int64_t j = 0; j < row.outputs; ++j) {
                        if (j == lo && n > 0) j = hi;
                        if (j < row.outputs) find_one<Q>(base, o, j, out + at + j, places + at + j);
                    }
                };
                broken > base ? find(R{}) : find(Quick<R, S>{});
                return int64_t{1};
            });
        }
    }

    // The window of output (o, j), which begins in a row whose first input is `base`.
    template <class Q>
    void find_one(const S* base, int64_t o, int64_t j, O* to, uint8_t* to_code) {
        const Axis& down = g.axis[0];
        const Axis& row = g.axis[1];
        const int64_t count = row.count[j];
        const S* at = base + row.begin[j];
        A best = static_cast<A>(widen(at[0]));
        C code = 0;
        for (int64_t t = 0; t < down.count[o]; ++t, at += down.step * row.size)
            for (int64_t s = 0; s < count; ++s) {  // without a branch that nobody could foresee
                const A v = static_cast<A>(widen(at[s * row.step]));
                const C taken = static_cast<C>(-static_cast<int64_t>(Q::replaces(best, v)));
                best = Q::merge(best, v);
                code ^= (code ^ static_cast<C>(t * row.taps + s)) & taken;
            }
        *to = narrow<O>(best);
        *to_code = static_cast<uint8_t>(code);
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
        const Axis& down = g.axis[last - 1];
        for (int64_t j = 0; j < g.axis[last].size + slack; ++j)
            nothing[j] = narrow<S>(blank<R, A>(g.exponent));
        pad_rows(column, block);
        each_row(part, [&](int64_t outer, int64_t o, int64_t at) {
            const S* from = x + outer * extent[0];
            if (last == 1) {
                const int64_t left = part.last - (outer * down.outputs + o);
                const int64_t n = at_most(at_most(piece, down.outputs - o), left);
                pool_rows(from, 0, o, n, 1.0, out + at);
                return n;
            }
            for (int64_t row = 0; row < down.outputs; row += piece)
                pool_rows(from, o, row, at_most(piece, down.outputs - row), divisor(0, o),
                          out + at + row * length[2]);
            return int64_t{1};
        });
        reduce_held();
    }

    // Rows o .. o + n of a plane. Small planes are held until there is a block of rows.
    void pool_rows(const S* from, int64_t slab, int64_t o, int64_t n, double by, O* to) {
        if (held + n > block) reduce_held();
        if (merge_down(from, slab, o, n, column + held * pitch)) {
            reduce_held();
            return rows_first(from, slab, o, n, by, to);
        }
        if (held == 0) held_out = to;
        // One loop would ask for each: masked loads from where nothing is take 200 cycles.
        if (const double* of = g.axis[last - 1].divisor)
            for (int64_t r = 0; r < n; ++r) divisors[held + r] = by * of[o + r];
        else
            for (int64_t r = 0; r < n; ++r) divisors[held + r] = by;
        held += n;
    }

    void reduce_held() {
        if (held > 0) reduce_rows(held, held_out);
        held = 0;
    }

    // The identity in front of and behind what the lines bring.
    void pad_rows(A* rows_of, int64_t n) {
        const Extent& e = whole_line;
        for (int64_t r = 0; r < n; ++r) {
            A* row = rows_of + r * pitch;
            for (int64_t j = 0; j < e.before; ++j) row[j] = R::template identity<A>();
            for (int64_t j = e.before + e.inside; j < pitch; ++j)
                row[j] = R::template identity<A>();
        }
    }

    bool doubles_down() const {
        const Axis& down = g.axis[last - 1];
        return last == 1 && down.regular && down.stride == 1 && down.taps >= kDoubling;
    }

    // The lines that output rows o .. o + n see: `lines` from `first` on, of which [lo, hi) exist.
    struct Seen {
        int64_t first, lines, lo, hi;
    };
    Seen seen_by(int64_t o, int64_t n) const {
        const Axis& down = g.axis[last - 1];
        if (!down.regular) {
            const int64_t first = down.begin[o], end = end_of(down, o + n - 1);
            return {first, end - first, first, end};
        }
        const int64_t first = o * down.stride + down.offset;
        const int64_t lines = (n - 1) * down.stride + (down.taps - 1) * down.step + 1;
        return {first, lines, first > 0 ? first : 0, at_most(first + lines, down.size)};
    }

    // Whether the order of merging may show among the inputs of these lines.
    bool look_through(const S* base, const Seen& seen) {
        const int64_t between = (seen.hi - seen.lo - 1) * g.axis[last].size;
        return seen.hi > seen.lo &&
               look_through(base + seen.lo * g.axis[last].size, between + whole_line.inside);
    }

    // Lists the lines of each of the slabs that output `slab` of the first of three axes sees.
    // Returns whether the order of merging may show.
    bool list_lines(const S* from, int64_t slab, int64_t slabs, const Seen& seen) {
        for (int64_t t = 0; t < slabs; ++t) {
            const S* base = from + whole_line.start + whole_line.before;
            if (last == 2) base += (g.axis[0].begin[slab] + t * g.axis[0].step) * extent[1];
            if (look_through(base, seen)) return true;
            for (int64_t i = 0; i < seen.lines; ++i) {
                const int64_t at = seen.first + i;
                inputs[t * listed + i] =
                    at >= seen.lo && at < seen.hi ? base + at * g.axis[last].size : nothing;
            }
        }
        return false;
    }

    // The columns of output rows o .. o + n, to rows of a block; whether the order of merging may
    // show: then nothing is merged.
    bool merge_down(const S* from, int64_t slab, int64_t o, int64_t n, A* rows_of) {
        using Columns = Quick<R, S>;
        const Axis& down = g.axis[last - 1];
        const Extent& e = whole_line;
        if (e.inside == 0) return false;
        A* to = rows_of + e.before;
        const double p = g.exponent;
        const int64_t slabs = last == 2 ? g.axis[0].count[slab] : 1;
        const Seen seen = seen_by(o, n);
        const auto slides = [&](int64_t k, int64_t s) {
            return slabs == 1 && down.regular && down.taps == k && down.stride == s &&
                   down.step == 1;
        };
        const auto slide_down = [&](auto k, auto s) {
            if (list_lines(from, slab, slabs, seen)) return true;
            slide<Columns, A, true, k.value, s.value>(ListedLines<S>{inputs}, n, e.inside, p, to,
                                                      pitch);
            return false;
        };
        if (slides(2, 2)) return slide_down(Constant<2>{}, Constant<2>{});
        if (slides(3, 2)) return slide_down(Constant<3>{}, Constant<2>{});
        if (slides(4, 4)) return slide_down(Constant<4>{}, Constant<4>{});
        if (slides(3, 3)) return slide_down(Constant<3>{}, Constant<3>{});
        if (slides(3, 1)) return slide_down(Constant<3>{}, Constant<1>{});
        if (slides(5, 1)) return slide_down(Constant<5>{}, Constant<1>{});
        if constexpr (R::idempotent) {
            if (slides(7, 1)) return slide_down(Constant<7>{}, Constant<1>{});
            if (slides(9, 1)) return slide_down(Constant<9>{}, Constant<1>{});
            if (slides(13, 1)) return slide_down(Constant<13>{}, Constant<1>{});
        }
        if (doubles_down()) {
            if (list_lines(from, slab, slabs, seen)) return true;
            pad_rows(area, seen.lines);
            for (int64_t i = 0; i < seen.lines; ++i)
                across_padded<Columns, A, true>(ListedLines<S>{inputs + i}, 1, e.inside, p,
                                                area + i * pitch + e.before);
            within_doubling<Columns, A>(area, n * pitch, down.taps, down.step * pitch, rows_of);
            return false;
        }
        if (last == 1) {  // row by row, without a list
            const int64_t width = g.axis[last].size;
            const S* base = from + e.start + e.before;
            if (look_through(base, seen)) return true;
            across_rows<Columns, A, true>(base, width, down.begin + o, down.count + o, down.step, n,
                                          e.inside, p, to, pitch);
            return false;
        }
        if (list_lines(from, slab, slabs, seen)) return true;
        const S** next = picked;
        for (int64_t r = 0; r < n; ++r) {
            const int64_t taps = down.regular ? down.taps : down.count[o + r];
            const int64_t above = down.regular ? r * down.stride : down.begin[o + r] - seen.first;
            for (int64_t s = 0; s < slabs; ++s)
                for (int64_t t = 0; t < taps; ++t)
                    *next++ = inputs[s * listed + above + t * down.step];
        }
        if (next == picked + 8 * n && down.regular) {
            slide<Columns, A, true, 8, 8>(ListedLines<S>{picked}, n, e.inside, p, to, pitch);
            return false;
        }
        next = picked;
        for (int64_t r = 0; r < n; ++r) {
            const int64_t each = slabs * (down.regular ? down.taps : down.count[o + r]);
            across_padded<Columns, A, true>(ListedLines<S>{next}, each, e.inside, p,
                                            to + r * pitch);
            next += each;
        }
        return false;
    }

    // Whether the order of merging may show among n values. Columns are merged one after another,
    // which the hardware does not foresee: reading the lines in order first, or at least
    // prefetching them, takes half the time where they are not in a cache.
    static bool look_through(const S* from, int64_t n) {
        if constexpr (scans<R, S>) {
            return order_shows<A>(from, n);
        } else if constexpr (R::idempotent && !R::plain) {
            return false;  // keys: looked through already
        } else {
            fetch(from, n);
            return false;
        }
    }
    static void fetch(const S* from, int64_t n) {
        constexpr int64_t line = 64 / sizeof(S);
        for (int64_t j = 0; j < n; j += line) __builtin_prefetch(from + j);
    }

    // Merged columns of a block become results, divided by what their row and column say.
    void reduce_rows(int64_t n, O* out) {
        using Columns = OfStates<Quick<R, S>>;
        const Axis& row = g.axis[last];
        const int64_t outputs = row.outputs;
        const double columns = row.divisor ? row.divisor[0] : 1.0;
        const bool alike = divides_alike(row);
        const bool shuffled = !turned && row.regular && (row.taps <= kLongSpan || row.stride == 1);
        if constexpr (fixed_point) {
            if (shuffled && alike && rows_alike) {
                requantizer.use(divisors[0] * columns);
                if (requantizer.fixed.bits)
                    return reduce_rows_by<Columns>(n, [&](int64_t r) {
                        return requantizer.put_fixed(out + r * outputs,
                                                     joined ? n * outputs : outputs);
                    });
            }
        }
        // In registers where all columns are divided by the same, else by way of memory.
        const bool at_once = in_lanes && alike;
        const int64_t stored = joined || turned ? outputs : round_up(outputs, lanes<A>);
        A* states = wide + block * pitch + row.taps * row.step + 8 * lanes<A>;
        if (turned) {
            if (reduce_turned<Columns>(n, out, states)) return;
        } else if (shuffled) {
            reduce_rows_by<Columns>(n, [&](int64_t r) {
                O* to = at_once ? out + r * outputs : nullptr;
                const Divider<A> divided(columns * divisors[r]);
                return [=, this](int64_t i, Vec<A> v) {
                    if constexpr (in_lanes)
                        if (to) return put_to(to, (n - r) * outputs, divided)(i, v);
                    store<A>(states + r * stored + i, v);
                };
            });
            if (at_once) return;
        } else {
            for (int64_t r = 0; r < n; ++r)
                within<Columns, A>(row, column + r * pitch - whole_line.start, 0, outputs,
                                   whole_line, g.exponent, buffer, states + r * stored);
        }
        for (int64_t r = 0; r < n; ++r)
            finish(states + r * stored, outputs, divisors[r], row.divisor, out + r * outputs);
    }

    // As many rows at a time as there are lanes; whether they are results, or still states.
    template <class Columns>
    POOLKIT_ONCE bool reduce_turned(int64_t n, O* out, A* states) {
        const Axis& row = g.axis[last];
        const int64_t outputs = row.outputs;
        const A* first = rows_turned - whole_line.start * lanes<A>;
        for (int64_t r = 0; r < n; r += lanes<A>) {
            const int64_t rows = at_most<int64_t>(lanes<A>, n - r);
            turn_rows<A>(column + r * pitch, pitch, pitch, rows_turned);
            const auto keep = [&](int64_t o, Vec<A> v) {
                store<A>(results_turned + o * lanes<A>, v);
            };
            if constexpr (in_lanes) {
                Vec<A> by{};
                if constexpr (!R::positions) {
                    A lane[lanes<A>];
                    for (int i = 0; i < lanes<A>; ++i) lane[i] = static_cast<A>(divisors[r + i]);
                    by = load<A>(lane);
                }
                within_turned<Columns, A>(row, first, [&](int64_t o, Vec<A> v) {
                    if (row.divisor) v = v / (by * broadcast<A>(static_cast<A>(row.divisor[o])));
                    keep(o, R::finish(v, g.exponent));
                });
                turn_back<A>(results_turned, rows, outputs, out + r * outputs);
            } else {
                within_turned<Columns, A>(row, first, keep);
                turn_back<A>(results_turned, rows, outputs, states + r * outputs);
            }
        }
        return in_lanes;
    }

    template <class Columns, class PutIn>
    POOLKIT_INLINE void reduce_rows_by(int64_t n, PutIn put) {
        const Axis& row = g.axis[last];
        const int64_t outputs = row.outputs;
        if (climbed<Columns, 5>(n, put) || climbed<Columns, 7>(n, put) ||
            climbed<Columns, 9>(n, put) || climbed<Columns, 13>(n, put))
            return;
        if (row.stride != 1 || row.taps < kDoubling)
            return unclipped<Columns, A>(row, column, pitch, joined ? 1 : n,
                                         joined ? n * outputs : outputs, put);
        // All rows as one line: windows between two of them are nobody's.
        within_doubling<Columns, A>(column, (n - 1) * pitch + outputs, row.taps, row.step, wide);
        for (int64_t r = 0; r < n; ++r) {
            const auto put_row = put(r);
            each_vector<A>(outputs, [&](int64_t i) { put_row(i, load<A>(wide + r * pitch + i)); });
        }
        pad_rows(column, n);
    }

    template <class Columns, int K, class PutIn>
    POOLKIT_INLINE bool climbed(int64_t n, PutIn put) {
        const Axis& row = g.axis[last];
        if constexpr (climbs<R, A, K>) {
            if (row.taps != K || row.stride != 1 || row.step != 1) return false;
            for (int64_t r = 0; r < n; ++r)
                climb<Columns, A, K>(column + r * pitch, row.outputs, put(r));
            return true;
        }
        return false;
    }

    // The same rows in row-major order.
    void rows_first(const S* from, int64_t slab, int64_t o, int64_t n, double by, O* out) {
        const Axis& down = g.axis[last - 1];
        const Axis& row = g.axis[last];
        const int64_t stored = round_up(row.outputs + slack, lanes<A>);
        const int64_t slabs = last == 2 ? g.axis[0].count[slab] : 1;
        const Extent e = row.regular ? whole_line : extent_of(row, 0, row.outputs);
        for (int64_t r = 0; r < n; ++r) {
            const int64_t count = down.count[o + r];
            for (int64_t i = 0; i < slabs * count; ++i) {
                const S* line = from + (down.begin[o + r] + i % count * down.step) * row.size;
                if (last == 2)
                    line += (g.axis[0].begin[slab] + i / count * g.axis[0].step) * extent[1];
                within<R, A>(row, line, 0, row.outputs, e, g.exponent, buffer, kept + i * stored);
            }
            across<R, A, false>(StridedLines<A>{kept, stored}, slabs * count, row.outputs,
                                g.exponent, state);
            finish(state, row.outputs, by * divisor(last - 1, o + r), row.divisor,
                   out + r * row.outputs);
        }
    }

    void forget() {
        for (int a = 0; a < last; ++a)
            for (int64_t i = 0; i < rows[a]; ++i) tag[a][i] = nullptr;
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
        if constexpr (requantizes<R>)
            return requantizer.line(from, n, row, columns, uniform, to);
        else
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
