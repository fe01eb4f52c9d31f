// The gradient of max and min.
#pragma once

#include "covers.h"

namespace {

// Inputs are gathered for, a vector at a time, where that costs less than to add each output's
// share where its code says: for up to so many outputs that see an input, for each lane. Measured
// (float32, 16 lanes, ns an input): 3x3, stride 1, 0.9 gathered; 5x5, stride 1, 3.7 added.
constexpr int64_t kPairsPerLane = 1;
// Shares are added to blocks of this many bytes, which stay in cache.
constexpr int64_t kBlockBytes = 256 * 1024;
// Where each code lies in a window is looked up, for windows of up to this many positions.
constexpr int64_t kPlaces = 65536;

// The shares of an input are added in ascending order of the outputs, in both walks; so no two
// threads write to one place, and no bit depends on their number, or on the walk.
template <class S>
class Scattering {
  public:
    using A = typename AddingAccumulator<S>::type;
    using C = Code<A>;

    Scattering(const Geometry& geometry, int64_t inner_size, Arena arena)
        : g(geometry), inner(inner_size), last(geometry.axes - 1) {
        extent[g.axes] = results[g.axes] = inner;
        for (int a = last; a >= 0; --a) {
            extent[a] = extent[a + 1] * g.axis[a].size;
            results[a] = results[a + 1] * g.axis[a].outputs;
        }
        const Axis& row = g.axis[last];
        int64_t pairs = inner == 1 ? (row.taps + row.stride - 1) / row.stride : row.transposed_most;
        for (int a = 0; a < last; ++a) pairs *= g.axis[a].transposed_most;
        gathers =
            pairs <= kPairsPerLane * lanes<A> && (inner == 1 ? in_phases(row) : inner >= lanes<A>);
        // Around a row lie codes of all ones, which no window may have.
        if (inner == 1 && (g.positions == 256 || g.positions == 65536)) gathers = false;
        tiled = gathers && inner == 1 && g.axes > 1 && row.stride > 1 && row.taps == row.stride &&
                row.size == row.outputs * row.stride && row.offset == 0 && row.step == 1 &&
                row.outputs >= lanes<A>;
        for (int a = 0; a < last; ++a) tiled = tiled && g.axis[a].disjoint;
        if (gathers) {
            covers.take(g, last, arena);
            int64_t most = 1;
            for (int a = 0; a < last; ++a) most *= g.axis[a].transposed_most;
            if (inner > 1)
                seen = arena.template take<Cover>(most * row.transposed_most + 1);
            else
                take_rows(arena);
        } else {
            if (g.positions <= kPlaces) places = arena.template take<int64_t>(g.positions + 1);
            const Axis& first = g.axis[0];
            const int64_t rows = kBlockBytes / (extent[1] * static_cast<int64_t>(sizeof(A)));
            const int64_t windows = kGradientWindows * ((first.taps - 1) * first.step + 1);
            block = at_most(rows > windows ? rows : windows, first.size);
            if (!same<A, S>) sums = arena.template take<A>(block * extent[1]);
        }
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        if (!gathers && places) find_places();
        each_run(g, part, [&](int64_t slab, int64_t r0, int64_t r1) {
            const int64_t base = slab * results[0];
            const S* grad = static_cast<const S*>(part.x) + base;
            S* to = static_cast<S*>(part.out) + slab * extent[0];
            const auto with = [&](const auto* codes) {
                run_rows(grad, codes + base, codes + part.outer * results[0], to, r0, r1);
            };
            if (g.positions <= 256)
                with(static_cast<const uint8_t*>(part.positions));
            else if (g.positions <= 65536)
                with(static_cast<const uint16_t*>(part.positions));
            else
                with(static_cast<const uint32_t*>(part.positions));
        });
    }

  private:
    // Room for the outputs that a block of rows of the first axis is gathered from.
    void take_rows(Arena& arena) {
        const Axis& row = g.axis[last];
        const Axis& first = g.axis[0];
        const int64_t reach = (first.taps - 1) * first.step;
        margin =
            round_up(margin_of(row), lanes<A>);  // vectors of outputs lie in one line of the cache
        if (g.axes == 1) {
            block = at_most(rows_of_task(g, inner), row.size);
            room = at_most(row.outputs, (block + reach) / row.stride + 2) + margin;
            most_rows = 1;
        } else {
            room = round_up(row.outputs + margin, lanes<A>);
            const int64_t middle = results[1] / row.outputs;
            most_rows = first.outputs;
            block = first.size;
            const int64_t row_bytes = middle * room * static_cast<int64_t>(sizeof(A) + sizeof(C));
            if (first.regular && most_rows * row_bytes > kBlockBytes) {
                block = kBlockBytes / row_bytes * first.stride - reach;
                if (block < 1) block = 1;
                most_rows = at_most(first.outputs, (block + reach) / first.stride + 2);
            }
            most_rows *= middle;
        }
        const int64_t n = margin + most_rows * room + 4 * lanes<A>;
        read_codes = arena.template take<C>(n);  // at most
        read_shares = arena.template take<A>(n);
    }

    const Geometry& g;
    int64_t inner;
    int last;
    int64_t extent[kMaxAxes + 1], results[kMaxAxes + 1];  // elements of axes a.. with those behind
    bool gathers;
    bool tiled = false;  // by windows that see each input once, along rows without a rest
    Covers covers;
    Cover* seen = nullptr;
    int64_t room = 0, margin = 0;  // of a row that has been read
    void* read_codes = nullptr;  // as narrow as they came: a vector of them seldom spans two lines
    A* read_shares = nullptr;
    int64_t* places = nullptr;
    int64_t block = 0;  // rows of the first axis
    int64_t most_rows = 0;
    A* sums = nullptr;

    // Rows [r0, r1) of the first axis of one slab.
    template <class P>
    void run_rows(const S* grad, const P* codes, const P* end, S* to, int64_t r0, int64_t r1) {
        if (gathers && inner > 1) {
            if (g.axes == 1) {
                covers.find(0);
                return gather_lines(grad, codes, to, r0, r1);
            }
            const int64_t size = g.axis[last].size, rows = extent[1] / (size * inner);
            for (int64_t row = r0 * rows; row < r1 * rows; ++row) {
                covers.find(row);
                gather_lines(grad, codes, to + row * size * inner, 0, size);
            }
            return;
        }
        if (tiled) {
            switch (g.axis[last].stride) {
                case 2:
                    return gather_tiles<2>(grad, codes, to, r0, r1);
                case 3:
                    return gather_tiles<3>(grad, codes, to, r0, r1);
                default:
                    return gather_tiles<4>(grad, codes, to, r0, r1);
            }
        }
        for (int64_t r = r0; r < r1; r += block) {
            if (gathers)
                gather_rows(grad, codes, end, to, r, at_most(r + block, r1));
            else
                add_shares(grad, codes, to, r, at_most(r + block, r1));
        }
    }

    // --- gathering along rows -------------------------------------------------------------------

    // The outputs are read first and the inputs gathered afterwards: loads that overlap two stores
    // wait until these have left the pipeline.
    template <class P>
    void gather_rows(const S* grad, const P* codes, const P* end, S* to, int64_t r0, int64_t r1) {
        const Axis& axis = g.axis[last];
        int64_t o0, o1;
        covering(g.axis[0], r0, r1, o0, o1);
        if (g.axes == 1) {
            read_row(axis, grad, codes, end, o0, o1, 0);
            covers.find(0);
            return gather_row<P>(axis, to, r0, r1, -o0);
        }
        const int64_t middle = results[1] / axis.outputs, first = o0 * middle;
        for (int64_t row = first; row < o1 * middle; ++row) {
            const int64_t at = row * axis.outputs;
            read_row(axis, grad + at, codes + at, end, 0, axis.outputs, (row - first) * room);
        }
        const int64_t rows = extent[1] / axis.size;
        for (int64_t row = r0 * rows; row < r1 * rows; ++row) {
            covers.find(row);
            gather_row<P>(axis, to + row * axis.size, 0, axis.size, -first * room);
        }
    }

    // Tiles: an input belongs to one output, which is read where it lies.
    template <int Stride, class P>
    POOLKIT_ONCE void gather_tiles(const S* grad, const P* codes, S* to, int64_t r0, int64_t r1) {
        const Axis& axis = g.axis[last];
        const int64_t rows = extent[1] / axis.size;
        for (int64_t row = r0 * rows; row < r1 * rows; ++row) {
            covers.find(row);
            S* line = to + row * axis.size;
            if (covers.count == 0) {
                memset(line, 0, axis.size * sizeof(S));
                continue;
            }
            const S* shares = grad + covers.list[0].at * axis.outputs;
            const P* found = codes + covers.list[0].at * axis.outputs;
            const C base = static_cast<C>(covers.list[0].code * Stride);
            write_phases<A, Stride>(
                axis, 0, axis.size, line, [&](int64_t m, int64_t, Vec<A>(&v)[Stride]) {
                    const Vec<C> code = load_codes<C>(found + m);
                    const Vec<A> share = Vec<A>{} + load<A>(shares + m);  // -0.0 becomes 0.0
#pragma GCC unroll 4
                    for (int r = 0; r < Stride; ++r)
                        v[r] = code == broadcast<C>(static_cast<C>(base + r)) ? share : Vec<A>{};
                });
        }
    }

    // Outputs [o0, o1), around them codes that mean no input. What is written too far is
    // overwritten by what comes behind.
    template <class P>
    POOLKIT_INLINE void read_row(const Axis& axis, const S* grad, const P* codes, const P* end,
                                 int64_t o0, int64_t o1, int64_t at) {
        constexpr int64_t width = lanes<A>;
        const int64_t n = o1 - o0, readable = end - codes - o0;
        P* to = static_cast<P*>(read_codes) + at;
        memset(to, 0xff, margin * sizeof(P));
        to += margin;
        memcpy(to, codes + o0, n * sizeof(P));
        memset(to + n, 0xff, margin * sizeof(P));
        A* values = read_shares + margin + at;
        int64_t i = 0;
        for (; i < n && i + width <= readable; i += width)
            store<A>(values + i, load<A>(grad + o0 + i));
        for (; i < n; ++i) values[i] = static_cast<A>(widen(grad[o0 + i]));
        // The taps of a window clipped in front are counted from its first inside. A code that ends
        // a gradient may wrap, to one of the skipped taps, which lie in front of all inputs.
        for (int64_t o = o0; o < at_most(axis.full_begin, o1); ++o) {
            const int64_t skipped = (axis.begin[o] - o * axis.stride - axis.offset) / axis.step;
            to[o - o0] =
                axis.count[o] == 0 ? static_cast<P>(-1) : static_cast<P>(to[o - o0] + skipped);
        }
    }

    template <class P>
    void gather_row(const Axis& axis, S* to, int64_t i0, int64_t i1, int64_t start) {
        switch (axis.stride) {
            case 1:
                return gather_phases<1, P>(axis, to, i0, i1, start + margin);
            case 2:
                return gather_phases<2, P>(axis, to, i0, i1, start + margin);
            case 3:
                return gather_phases<3, P>(axis, to, i0, i1, start + margin);
            default:
                return gather_phases<4, P>(axis, to, i0, i1, start + margin);
        }
    }

    template <int Stride, class P>
    POOLKIT_ONCE void gather_phases(const Axis& axis, S* to, int64_t i0, int64_t i1,
                                    int64_t start) {
        const int64_t step = axis.step, count = covers.count;
        with_taps(axis.taps, [&](auto taps) {
            write_phases<A, Stride>(
                axis, i0, i1, to, [&](int64_t m, int64_t ahead, Vec<A>(&v)[Stride]) {
                    for (int r = 0; r < Stride; ++r) v[r] = Vec<A>{};
                    for (int64_t k = 0; k < count; ++k) {
                        const int64_t at = start + covers.list[k].at * room + m;
                        const P* codes = static_cast<const P*>(read_codes) + at;
                        const A* shares = read_shares + at;
                        const C base = static_cast<C>(covers.list[k].code * taps);
                    // Last taps first: they belong to the earliest outputs.
#pragma GCC unroll 4
                        for (int64_t j = (taps - 1) / Stride; j >= 0; --j) {
#pragma GCC unroll 4
                            for (int r = 0; r < Stride; ++r) {
                                const int64_t t = j * Stride + r;
                                if (t >= taps) continue;
                                const int64_t from = (r < ahead) - j * step;
                                v[r] = add_where<A>(v[r], codes + from, static_cast<C>(base + t),
                                                    shares + from);
                            }
                        }
                    }
                });
        });
    }

    // --- gathering lines ------------------------------------------------------------------------

    template <class P>
    void gather_lines(const S* grad, const P* codes, S* to, int64_t i0, int64_t i1) {
        const Axis& axis = g.axis[last];
        for (int64_t i = i0; i < i1; ++i) {
            const int64_t outs = axis.transposed_count[i], begin = axis.transposed_begin[i];
            int64_t n = 0;
            for (int64_t k = 0; k < covers.count; ++k)
                for (int64_t j = 0; j < outs; ++j) {
                    const int64_t o = begin + j * axis.transposed_step;
                    seen[n++] = {(covers.list[k].at * axis.outputs + o) * inner,
                                 covers.list[k].code * axis.taps + tap_of(axis, i, o), 1.0};
                }
            S* line = to + i * inner;
            int64_t j = 0;
            for (; j + 4 * lanes<A> <= inner; j += 4 * lanes<A>)
                gather_columns<4>(grad + j, codes + j, n, line + j);
            for (; j + lanes<A> <= inner; j += lanes<A>)
                gather_columns<1>(grad + j, codes + j, n, line + j);
            if (j < inner) {  // again some columns that are done: same values
                j = inner - lanes<A>;
                gather_columns<1>(grad + j, codes + j, n, line + j);
            }
        }
    }

    template <int U, class P>
    POOLKIT_INLINE void gather_columns(const S* grad, const P* codes, int64_t n, S* to) {
        Vec<A> acc[U] = {};
        for (int64_t k = 0; k < n; ++k) {
            const S* from = grad + seen[k].at;
            const P* code = codes + seen[k].at;
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u)
                acc[u] = add_where<A>(acc[u], code + u * lanes<A>, static_cast<C>(seen[k].code),
                                      from + u * lanes<A>);
        }
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) store<A>(to + u * lanes<A>, acc[u]);
    }

    // --- output by output -----------------------------------------------------------------------

    // Where in the input each code lies, from the first position of its window.
    void find_places() {
        int64_t n = 1;
        places[0] = 0;
        for (int a = 0; a < g.axes; ++a) {
            const Axis& axis = g.axis[a];
            const int64_t taps = axis.taps > 1 ? axis.taps : 1;
            for (int64_t k = n - 1; k >= 0; --k)
                for (int64_t t = taps - 1; t >= 0; --t)
                    places[k * taps + t] = places[k] + t * axis.step * extent[a + 1];
            n *= taps;
        }
        // Plans of a max alone are given codes that end a gradient too: one behind their own.
        for (; n <= g.positions; ++n) places[n] = kNowhere;
    }

    int64_t place_of(int64_t code) const {
        int64_t place = 0;
        for (int a = last; a >= 0; --a) {
            place += code % g.axis[a].taps * g.axis[a].step * extent[a + 1];
            code /= g.axis[a].taps;
        }
        return code == 0 ? place : kNowhere;
    }

    // Rows [r0, r1) of the first axis: zeros, to which each output that sees one adds.
    template <class P>
    void add_shares(const S* grad, const P* codes, S* to, int64_t r0, int64_t r1) {
        const int64_t lo = r0 * extent[1], n = (r1 - r0) * extent[1];
        A* out = sums;
        if constexpr (same<A, S>) out = to + lo;
        memset(out, 0, n * sizeof(A));
        int64_t o0, o1;
        covering(g.axis[0], r0, r1, o0, o1);
        if (g.axes == 1) {
            add_row(grad, codes, o0, o1, -lo, n, out);
        } else {
            const int64_t columns = g.axis[last].outputs,
                          middle = g.axes > 2 ? g.axis[1].outputs : 1;
            for (int64_t o = o0; o < o1; ++o)
                for (int64_t m = 0; m < middle; ++m) {
                    int64_t start = g.axis[0].begin[o] * extent[1] - lo;
                    if (g.axes > 2) start += g.axis[1].begin[m] * extent[2];
                    const int64_t at = (o * middle + m) * columns * inner;
                    add_row(grad + at, codes + at, 0, columns, start, n, out);
                }
        }
        if constexpr (!same<A, S>) {
            int64_t i = 0;
            for (; i + lanes<A> <= n; i += lanes<A>) store<A>(to + lo + i, load<A>(out + i));
            for (; i < n; ++i) to[lo + i] = narrow<S>(out[i]);
        }
    }

    // Outputs [o0, o1) of a row whose windows begin behind `start`, to places [0, n).
    template <class P>
    POOLKIT_ONCE void add_row(const S* grad, const P* codes, int64_t o0, int64_t o1, int64_t start,
                              int64_t n, A* out) {
        const int64_t* begin = g.axis[last].begin;
        const int64_t* known = places;
        for (int64_t o = o0; o < o1; ++o) {
            const int64_t at = start + begin[o] * inner;
            for (int64_t c = 0, from = o * inner; c < inner; ++c, ++from) {
                const int64_t place = at + c + (known ? known[codes[from]] : place_of(codes[from]));
                if (static_cast<uint64_t>(place) < static_cast<uint64_t>(n))
                    out[place] += static_cast<A>(widen(grad[from]));
            }
        }
    }
};

template <class S>
int64_t scatter_scratch(const Geometry& g, int64_t inner) {
    return Scattering<S>(g, inner, Arena{nullptr}).bytes;
}

template <class S>
void scatter(const Geometry& g, const Part& part) {
    Scattering<S>(g, part.inner, Arena{static_cast<char*>(part.scratch)}).run(part);
}

}  // namespace
