// The gradient of sums and means: each output's share goes to all that it sees.
#pragma once

#include "covers.h"

namespace {

// Shares are divided, added up across the axes in front, and then along the row. Neighbouring rows
// (and pixels) that the same outputs see are alike, and copied: where windows do not overlap, that
// is all but one row of each window.
template <class S>
class Spreading {
  public:
    using A = typename AddingAccumulator<S>::type;

    Spreading(const Geometry& geometry, int64_t inner_size, Arena arena)
        : g(geometry), inner(inner_size), last(geometry.axes - 1) {
        const Axis& row = g.axis[last];
        covers.take(g, last, arena);
        if (inner > 1) {
            int64_t most = row.transposed_most;
            for (int a = 0; a < last; ++a) most *= g.axis[a].transposed_most;
            seen = arena.template take<Cover>(most + 1);
        } else {
            phases = in_phases(row);
            const int64_t rows = rows_of_task(g, inner);
            const int64_t inputs = g.axes > 1 ? row.size : at_most(rows, row.size);
            int64_t outputs = row.outputs;
            if (phases) {
                margin = margin_of(row);
                outputs = at_most(outputs, (inputs + (row.taps - 1) * row.step) / row.stride + 2);
            }
            line = arena.template take<A>(outputs + 2 * margin + 4 * lanes<A>);
            if (row.divisor && !row.divisor_uniform)
                columns = arena.template take<A>(row.outputs + lanes<A>);
        }
        bytes = arena.used;
    }

    int64_t bytes = 0;

    void run(const Part& part) {
        int64_t plane = inner, results = inner;
        for (int a = 0; a < g.axes; ++a) plane *= g.axis[a].size, results *= g.axis[a].outputs;
        if (columns)
            for (int64_t o = 0; o < g.axis[last].outputs; ++o)
                columns[o] = static_cast<A>(g.axis[last].divisor[o]);
        const int64_t size = g.axis[last].size, row_bytes = size * inner * sizeof(S);
        each_run(g, part, [&](int64_t slab, int64_t r0, int64_t r1) {
            const S* grad = static_cast<const S*>(part.x) + slab * results;
            S* to = static_cast<S*>(part.out) + slab * plane;
            covers.forget();
            if (g.axes == 1) {
                covers.find(0);
                const int64_t rows = rows_of_task(g, inner);
                for (int64_t i = r0; i < r1; i += rows) spread(grad, to, i, at_most(i + rows, r1));
                return;
            }
            const int64_t rows = plane / (g.axis[0].size * size * inner);
            for (int64_t row = r0 * rows; row < r1 * rows; ++row) {
                S* here = to + row * size * inner;
                if (covers.find(row))
                    memcpy(here, here - size * inner, row_bytes);
                else
                    spread(grad, here, 0, size);
            }
        });
    }

  private:
    const Geometry& g;
    int64_t inner;
    int last;
    Covers covers;
    Cover* seen = nullptr;
    bool phases = false;
    int64_t margin = 0;
    A* line = nullptr;
    A* columns = nullptr;  // the row's divisors, where they differ

    void spread(const S* grad, S* to, int64_t i0, int64_t i1) {
        if (inner > 1)
            spread_lines(grad, to, i0, i1);
        else
            spread_row(grad, to, i0, i1);
    }

    // Whether all divide by the same.
    static bool agree(const Cover* list, int64_t n) {
        for (int64_t k = 1; k < n; ++k)
            if (list[k].divisor != list[0].divisor) return false;
        return true;
    }

    void spread_row(const S* grad, S* to, int64_t i0, int64_t i1) {
        const Axis& axis = g.axis[last];
        int64_t o0, o1;
        covering(axis, i0, i1, o0, o1);
        if (!phases) {
            add_lines(axis, grad, o0, o1, line);
            for (int64_t i = i0; i < i1; ++i) {
                const A* from = line - o0 + axis.transposed_begin[i];
                A acc = A(0);
                for (int64_t j = 0; j < axis.transposed_count[i]; ++j)
                    acc += from[j * axis.transposed_step];
                to[i] = narrow<S>(acc);
            }
            return;
        }
        constexpr int64_t width = lanes<A>;
        for (int64_t i = 0; i < margin; i += width) store<A>(line + i, Vec<A>{});
        A* shares = line + margin;
        add_lines(axis, grad, o0, o1, shares);
        for (int64_t i = 0; i < margin; i += width) store<A>(shares + o1 - o0 + i, Vec<A>{});
        shares -= o0;
        switch (axis.stride) {
            case 1:
                return add_phases<1>(axis, shares, to, i0, i1);
            case 2:
                return add_phases<2>(axis, shares, to, i0, i1);
            case 3:
                return add_phases<3>(axis, shares, to, i0, i1);
            default:
                return add_phases<4>(axis, shares, to, i0, i1);
        }
    }

    template <int Stride>
    POOLKIT_ONCE void add_phases(const Axis& axis, const A* shares, S* to, int64_t i0, int64_t i1) {
        const int64_t step = axis.step;
        with_taps(axis.taps, [&](auto taps) {
            write_phases<A, Stride>(
                axis, i0, i1, to, [&](int64_t m, int64_t ahead, Vec<A>(&v)[Stride]) {
                    for (int r = 0; r < Stride; ++r) v[r] = Vec<A>{};
#pragma GCC unroll 4
                    for (int64_t j = (taps - 1) / Stride; j >= 0; --j) {
#pragma GCC unroll 4
                        for (int r = 0; r < Stride; ++r)
                            if (j * Stride + r < taps)
                                v[r] += load<A>(shares + m + (r < ahead) - j * step);
                    }
                });
        });
    }

    // The shares of outputs [o0, o1), added up over the rows that cover this one.
    void add_lines(const Axis& axis, const S* grad, int64_t o0, int64_t o1, A* out) {
        constexpr int64_t width = lanes<A>;
        const int64_t n = o1 - o0, count = covers.count;
        const bool together = agree(covers.list, count);
        const A all = axis.divisor && !columns && axis.outputs > 0 ? A(axis.divisor[0]) : A(1);
        const A row = count > 0 ? A(covers.list[0].divisor) : A(1);
        const bool divides = columns || row * all != A(1);
        const auto from = [&](int64_t k) { return grad + covers.list[k].at * axis.outputs + o0; };
        const auto by = [&](int64_t k) { return A(covers.list[k].divisor); };
        const auto at = [&](int64_t i) {
            const Vec<A> column = columns ? load<A>(columns + o0 + i) : broadcast<A>(all);
            Vec<A> acc{};
            if (together) {
                for (int64_t k = 0; k < count; ++k) acc += load<A>(from(k) + i);
                if (divides) acc /= broadcast<A>(row) * column;
            } else {
                for (int64_t k = 0; k < count; ++k)
                    acc += load<A>(from(k) + i) / (broadcast<A>(by(k)) * column);
            }
            store<A>(out + i, acc);
        };
        int64_t i = 0;
        for (; i + width <= n; i += width) at(i);
        if (i < n && n >= width) {  // again some columns that are done: same values
            at(n - width);
            return;
        }
        for (; i < n; ++i) {
            const A column = columns ? columns[o0 + i] : all;
            A acc = A(0);
            for (int64_t k = 0; k < count; ++k) {
                const A share = static_cast<A>(widen(from(k)[i]));
                acc += together ? share : share / (by(k) * column);
            }
            out[i] = together && divides ? acc / (row * column) : acc;
        }
    }

    void spread_lines(const S* grad, S* to, int64_t i0, int64_t i1) {
        const Axis& axis = g.axis[last];
        for (int64_t i = i0; i < i1; ++i) {
            const int64_t outs = axis.transposed_count[i], begin = axis.transposed_begin[i];
            S* here = to + i * inner;
            if (i > i0 && outs == axis.transposed_count[i - 1] &&
                begin == axis.transposed_begin[i - 1]) {
                memcpy(here, here - inner, inner * sizeof(S));
                continue;
            }
            int64_t n = 0;
            for (int64_t k = 0; k < covers.count; ++k)
                for (int64_t j = 0; j < outs; ++j) {
                    const int64_t o = begin + j * axis.transposed_step;
                    const double by = axis.divisor ? axis.divisor[o] : 1.0;
                    seen[n++] = {(covers.list[k].at * axis.outputs + o) * inner, 0,
                                 covers.list[k].divisor * by};
                }
            const bool together = agree(seen, n);
            const double by = n > 0 ? seen[0].divisor : 1.0;
            int64_t c = 0;
            for (; c + 4 * lanes<A> <= inner; c += 4 * lanes<A>)
                add_columns<4>(grad + c, n, together, by, here + c);
            for (; c + lanes<A> <= inner; c += lanes<A>)
                add_columns<1>(grad + c, n, together, by, here + c);
            for (; c < inner; ++c) {
                A acc = A(0);
                for (int64_t k = 0; k < n; ++k) {
                    const A share = static_cast<A>(widen(grad[seen[k].at + c]));
                    acc += together ? share : share / static_cast<A>(seen[k].divisor);
                }
                here[c] = narrow<S>(together ? acc / static_cast<A>(by) : acc);
            }
        }
    }

    template <int U>
    POOLKIT_INLINE void add_columns(const S* grad, int64_t n, bool together, double by, S* to) {
        Vec<A> acc[U] = {};
        for (int64_t k = 0; k < n; ++k) {
            const S* from = grad + seen[k].at;
            const Vec<A> divisor = broadcast<A>(static_cast<A>(seen[k].divisor));
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
                const Vec<A> share = load<A>(from + u * lanes<A>);
                acc[u] += together ? share : share / divisor;
            }
        }
        const Vec<A> divisor = broadcast<A>(static_cast<A>(by));
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u)
            store<A>(to + u * lanes<A>, together && by != 1.0 ? acc[u] / divisor : acc[u]);
    }
};

template <class S>
int64_t spread_scratch(const Geometry& g, int64_t inner) {
    return Spreading<S>(g, inner, Arena{nullptr}).bytes;
}

template <class S>
void spread(const Geometry& g, const Part& part) {
    Spreading<S>(g, part.inner, Arena{static_cast<char*>(part.scratch)}).run(part);
}

}  // namespace
