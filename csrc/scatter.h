// The gradient of max and min.
#pragma once

#include "loops.h"

namespace {

// A single long line is cut into tasks of this many inputs, or of so many reaches of a window.
constexpr int64_t kScatterPiece = 16384;
constexpr int64_t kScatterReaches = 4;

int64_t scatter_piece(const Axis& axis) {
    const int64_t reaches = kScatterReaches * axis.taps * axis.step;
    return reaches > kScatterPiece ? reaches : kScatterPiece;
}

int64_t count_scatter_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    const int64_t size = g.axis[0].size;
    if (inner > 1 || g.axes > 1) return outer * size;
    const int64_t piece = scatter_piece(g.axis[0]);
    return outer * ((size + piece - 1) / piece);
}

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
        int64_t states = inner > 1 ? inner : g.axis[last].size;
        if (looped == 0) states = at_most(states, scatter_piece(g.axis[0]));
        line = arena.template take<A>(states + 2 * lanes<A>);
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        if (looped == 0) return run_pieces(part);
        int64_t per_task = 1, rows = 1, plane = 1;
        for (int a = 0; a < g.axes; ++a) plane *= g.axis[a].size;
        for (int a = 0; a < looped; ++a) rows *= g.axis[a].size;
        per_task = rows / g.axis[0].size;
        const int64_t tasks = g.axis[0].size;
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
                with_codes(part, base, [&](const auto* codes) { gather(grad, codes, covers, to); });
            }
        }
    }

    // One axis, nothing behind it: pieces of lines.
    void run_pieces(const Part& part) {
        const Axis& axis = g.axis[0];
        const int64_t piece = scatter_piece(axis), pieces = (axis.size + piece - 1) / piece;
        cover[0] = {0, 0};
        for (int64_t task = part.first; task < part.last; ++task) {
            const int64_t outer = task / pieces, i0 = task % pieces * piece;
            const int64_t i1 = at_most(i0 + piece, axis.size), base = outer * axis.outputs;
            int64_t o0 = axis.outputs, o1 = 0;  // the outputs that see the piece
            if (pieces == 1) {
                o0 = 0, o1 = axis.outputs;
            } else if (axis.regular) {
                const int64_t reach = (axis.taps - 1) * axis.step, start = i0 - axis.offset;
                o0 = start > reach ? (start - reach + axis.stride - 1) / axis.stride : 0;
                o1 = at_most((i1 - 1 - axis.offset) / axis.stride + 1, axis.outputs);
            } else {
                for (int64_t i = i0; i < i1; ++i) {
                    if (axis.transposed_count[i] == 0) continue;
                    const int64_t begin = axis.transposed_begin[i];
                    const int64_t end =
                        begin + (axis.transposed_count[i] - 1) * axis.transposed_step + 1;
                    if (begin < o0) o0 = begin;
                    if (end > o1) o1 = end;
                }
            }
            const S* grad = static_cast<const S*>(part.x) + base;
            S* to = static_cast<S*>(part.out) + outer * axis.size;
            with_codes(part, base,
                       [&](const auto* codes) { gather_row(grad, codes, 1, to, i0, i1, o0, o1); });
        }
    }

  private:
    // Calls body(codes) with the codes from `base` on, as what they are stored in.
    template <class Body>
    POOLKIT_INLINE void with_codes(const Part& part, int64_t base, Body body) {
        if (g.positions <= 256)
            body(static_cast<const uint8_t*>(part.positions) + base);
        else if (g.positions <= 65536)
            body(static_cast<const uint16_t*>(part.positions) + base);
        else
            body(static_cast<const uint32_t*>(part.positions) + base);
    }

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
                    cover[k * outs + j] = {before.at * axis.outputs + o,
                                           before.code * axis.taps + tap};
                }
            }
            count *= outs;
        }
        return count;
    }

    template <class P>
    void gather(const S* grad, const P* codes, int64_t covers, S* to) {
        if (inner > 1)
            gather_lines(grad, codes, covers, to);
        else
            gather_row(grad, codes, covers, to, 0, g.axis[last].size, 0, g.axis[last].outputs);
    }

    template <class P>
    void gather_lines(const S* grad, const P* codes, int64_t covers, S* to) {
        int64_t j = 0;
        for (; j + lanes<A> <= inner; j += lanes<A>) {
            Vec<A> acc{};
            for (int64_t k = 0; k < covers; ++k) {
                const int64_t at = cover[k].at * inner + j;
                const Vec<C> code = load<C>(codes + at);
                acc += (code == broadcast<C>(static_cast<C>(cover[k].code))) ? load<A>(grad + at)
                                                                             : Vec<A>{};
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

    // Inputs [i0, i1) of a row, from outputs [o0, o1) of each row that covers it.
    template <class P>
    void gather_row(const S* grad, const P* codes, int64_t covers, S* to, int64_t i0, int64_t i1,
                    int64_t o0, int64_t o1) {
        const Axis& axis = g.axis[last];
        A* sums = line;
        if constexpr (same<A, S>) sums = to + i0;
        for (int64_t i = 0; i < i1 - i0; ++i) sums[i] = A(0);
        for (int64_t k = 0; k < covers; ++k) {
            const int64_t at = cover[k].at * axis.outputs, base = cover[k].code * axis.taps;
            add_row(axis, grad + at, codes + at, base, sums, i0, i1, o0, o1);
        }
        if constexpr (!same<A, S>)
            for (int64_t i = i0; i < i1; ++i) to[i] = narrow<S>(line[i - i0]);
    }

    template <class P>
    POOLKIT_INLINE void add_row(const Axis& axis, const S* grad, const P* codes, int64_t base,
                                A* sums, int64_t i0, int64_t i1, int64_t o0, int64_t o1) {
        const auto one = [&](int64_t o) {
            const int64_t tap = static_cast<int64_t>(codes[o]) - base;
            if (tap < 0 || tap >= axis.taps) return;
            const int64_t i = axis.begin[o] + tap * axis.step;
            if (i >= i0 && i < i1) sums[i - i0] += static_cast<A>(widen(grad[o]));
        };
        const bool pairs = axis.stride == 2 && axis.step == 1 && axis.taps >= 2;
        const bool vector = axis.regular && axis.taps <= 8 && (axis.stride == 1 || pairs);
        int64_t o = o0;
        if (vector) {
            // Those that lie wholly in this piece.
            const int64_t reach = (axis.taps - 1) * axis.step;
            const int64_t after = i1 - reach - axis.offset;  // begin before this
            int64_t lo = axis.full_begin, hi = after > 0 ? (after - 1) / axis.stride + 1 : 0;
            if (i0 > axis.offset) {
                const int64_t first = (i0 - axis.offset + axis.stride - 1) / axis.stride;
                if (first > lo) lo = first;
            }
            hi = at_most(hi, axis.full_end);
            for (; o < at_most(lo, o1); ++o) one(o);
            for (; o + lanes<A> <= hi; o += lanes<A>) {
                const Vec<C> tap = load<C>(codes + o) - broadcast<C>(static_cast<C>(base));
                const Vec<A> shares = load<A>(grad + o);
                A* at = sums + o * axis.stride + axis.offset - i0;
                const auto share = [&](int64_t t) {
                    return (tap == broadcast<C>(static_cast<C>(t))) ? shares : Vec<A>{};
                };
                if (axis.stride == 1) {
                    for (int64_t t = axis.taps - 1; t >= 0; --t)
                        store<A>(at + t * axis.step, load<A>(at + t * axis.step) + share(t));
                } else {
                    const auto add_pair = [&](A* to, Vec<A> a, Vec<A> b) {
                        store<A>(to, load<A>(to) + zip_first<A>(a, b));
                        store<A>(to + lanes<A>, load<A>(to + lanes<A>) + zip_second<A>(a, b));
                    };
                    // Last taps first, so that shares are added in ascending order of outputs. One
                    // without a partner is paired with the tap before, which gets 0.
                    int64_t t = axis.taps;
                    if (t % 2) --t, add_pair(at + t - 1, Vec<A>{}, share(t));
                    for (t -= 2; t >= 0; t -= 2) add_pair(at + t, share(t), share(t + 1));
                }
            }
        }
        for (; o < o1; ++o) one(o);
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
