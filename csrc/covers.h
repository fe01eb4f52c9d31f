// Which outputs see an input: what a gradient is gathered from.
#pragma once

#include "loops.h"

namespace {

// A line of one axis alone is cut into tasks of this many elements, or of so many windows.
constexpr int64_t kGradientPiece = 16384;
constexpr int64_t kGradientWindows = 4;

// Tasks are rows along the first axis, or pieces of it where there is no other.
int64_t rows_of_task(const Geometry& g, int64_t inner) {
    if (g.axes > 1) return 1;
    const int64_t windows = kGradientWindows * g.axis[0].taps * g.axis[0].step;
    const int64_t piece = (kGradientPiece + inner - 1) / inner;
    return windows > piece ? windows : piece;
}

int64_t tasks_of_slab(const Geometry& g, int64_t inner) {
    const int64_t rows = rows_of_task(g, inner);
    return (g.axis[0].size + rows - 1) / rows;
}

int64_t count_gradient_tasks(const Geometry& g, int64_t outer, int64_t inner) {
    return outer * tasks_of_slab(g, inner);
}

// Calls body(slab, first row, row behind the last) for tasks [first, last), neighbours together.
template <class Body>
POOLKIT_INLINE void each_run(const Geometry& g, const Part& part, Body body) {
    const int64_t rows = rows_of_task(g, part.inner), tasks = tasks_of_slab(g, part.inner);
    for (int64_t task = part.first; task < part.last;) {
        const int64_t slab = task / tasks, from = task % tasks;
        const int64_t n = at_most(tasks - from, part.last - task);
        body(slab, from * rows, at_most((from + n) * rows, g.axis[0].size));
        task += n;
    }
}

POOLKIT_INLINE int64_t floor_divided(int64_t a, int64_t by) {
    return a >= 0 ? a / by : -((-a + by - 1) / by);
}

// The outputs [o0, o1) that see inputs [i0, i1), and perhaps some that do not.
POOLKIT_INLINE void covering(const Axis& axis, int64_t i0, int64_t i1, int64_t& o0, int64_t& o1) {
    o0 = 0, o1 = axis.outputs;
    if (i0 == 0 && i1 == axis.size) return;
    if (axis.regular) {
        const int64_t reach = (axis.taps - 1) * axis.step;
        const int64_t first =
            floor_divided(i0 - axis.offset - reach + axis.stride - 1, axis.stride);
        const int64_t end = floor_divided(i1 - 1 - axis.offset, axis.stride) + 1;
        o0 = first > 0 ? at_most(first, axis.outputs) : 0;
        o1 = end > o0 ? at_most(end, axis.outputs) : o0;
        return;
    }
    o0 = axis.outputs, o1 = 0;
    for (int64_t i = i0; i < i1; ++i) {
        const int64_t n = axis.transposed_count[i], begin = axis.transposed_begin[i];
        if (n == 0) continue;
        const int64_t end = begin + (n - 1) * axis.transposed_step + 1;
        if (begin < o0) o0 = begin;
        if (end > o1) o1 = end;
    }
}

POOLKIT_INLINE int64_t tap_of(const Axis& axis, int64_t i, int64_t o) {
    const int64_t distance = i - axis.begin[o];
    return axis.step == 1 ? distance : distance / axis.step;
}

struct Cover {
    int64_t at;      // which output of these axes
    int64_t code;    // the position code with which it means the input
    double divisor;  // of a mean
};

// The outputs of the first axes that see an input, in ascending order.
class Covers {
  public:
    Cover* list = nullptr;
    int64_t count = 0;

    void take(const Geometry& geometry, int axes, Arena& arena) {
        g = &geometry;
        looped = axes;
        int64_t most = 1;
        for (int a = 0; a < looped; ++a) most *= geometry.axis[a].transposed_most;
        list = arena.template take<Cover>(most > 1 ? most : 1);
        forget();
    }

    void forget() { known = false; }

    // Of row number `row` of these axes. Whether they are those of the row asked for before.
    bool find(int64_t row) {
        int64_t i[kMaxAxes] = {};
        for (int a = looped - 1; a > 0; --a) {
            i[a] = row % g->axis[a].size;
            row /= g->axis[a].size;
        }
        i[0] = row;
        bool unchanged = known;
        known = true;
        count = 1;
        list[0] = {0, 0, 1.0};
        for (int a = 0; a < looped; ++a) {
            const Axis& axis = g->axis[a];
            const int64_t outs = axis.transposed_count[i[a]], first = axis.transposed_begin[i[a]];
            unchanged = unchanged && first == begin[a] && outs == counts[a];
            begin[a] = first;
            counts[a] = outs;
            const auto under = [&](int64_t at, int64_t code, double divisor, Cover* to) {
                for (int64_t j = outs - 1; j >= 0; --j) {
                    const int64_t o = first + j * axis.transposed_step;
                    to[j].at = at * axis.outputs + o;
                    to[j].code = code * axis.taps + tap_of(axis, i[a], o);
                    to[j].divisor = axis.divisor ? divisor * axis.divisor[o] : divisor;
                }
            };
            if (a == 0)  // most often the only one
                under(0, 0, 1.0, list);
            else
                for (int64_t k = count - 1; k >= 0; --k)
                    under(list[k].at, list[k].code, list[k].divisor, list + k * outs);
            count *= outs;
        }
        return unchanged;
    }

  private:
    const Geometry* g = nullptr;
    int looped = 0;
    bool known = false;
    int64_t begin[kMaxAxes] = {}, counts[kMaxAxes] = {};
};

// Inputs of a regular axis of stride s, in turn: those seen by the first, second, ... s-th tap of
// output m, then of m + 1. What taps further on see of them belongs to outputs before m. So vectors
// of outputs make vectors of inputs, each written once.
POOLKIT_INLINE bool in_phases(const Axis& axis) {
    return axis.regular && (axis.stride == 1 || (axis.step == 1 && axis.stride <= 4));
}

// How far before m those outputs lie.
POOLKIT_INLINE int64_t most_shift(const Axis& axis) {
    return (axis.taps - 1) / axis.stride * axis.step;
}

// Elements around a line of outputs that the phases of kept inputs read.
POOLKIT_INLINE int64_t margin_of(const Axis& axis) {
    const int64_t before = axis.offset > 0 ? axis.offset / axis.stride + 1 : 0;
    const int64_t behind = floor_divided(axis.size - 1 - axis.offset, axis.stride) + 1;
    const int64_t rest = behind > axis.outputs ? behind - axis.outputs : 0;
    const int64_t most = most_shift(axis) + before;
    return most > rest ? most : rest;
}

// Inputs [i0, i1) of a row, `to` being its first. phases(m, ahead, v) sets v[r] to what inputs r
// behind the first of outputs m.. get, or of m + 1.. for r < ahead: so that vectors begin at i0.
template <class A, int Stride, class S, class Phases>
POOLKIT_INLINE void write_phases(const Axis& axis, int64_t i0, int64_t i1, S* to, Phases phases) {
    constexpr int64_t width = lanes<A>, block = Stride * width;
    int64_t m = floor_divided(i0 - axis.offset, Stride);
    const int64_t ahead = i0 - axis.offset - m * Stride;
    for (int64_t i = i0; i < i1; i += block, m += width) {
        const int64_t over = i + block - i1;
        if (over > 0 && over % Stride == 0 && i - over >= i0)
            i -= over, m -= over / Stride;  // again some that are done: same values
        Vec<A> v[Stride], w[Stride];
        phases(m, ahead, v);
        for (int64_t turn = 0; Stride > 1 && turn < ahead; ++turn) {
            const Vec<A> first = v[0];
#pragma GCC unroll 4
            for (int r = 0; r + 1 < Stride; ++r) v[r] = v[r + 1];
            v[Stride - 1] = first;
        }
        w[0] = in_turn<A, Stride, 0>(v);
        if constexpr (Stride > 1) w[1] = in_turn<A, Stride, 1>(v);
        if constexpr (Stride > 2) w[2] = in_turn<A, Stride, 2>(v);
        if constexpr (Stride > 3) w[3] = in_turn<A, Stride, 3>(v);
        if (i + block <= i1) {
#pragma GCC unroll 4
            for (int r = 0; r < Stride; ++r) store<A>(to + i + r * width, w[r]);
        } else {
            S edge[block];
#pragma GCC unroll 4
            for (int r = 0; r < Stride; ++r) store<A>(edge + r * width, w[r]);
            memcpy(to + i, edge, (i1 - i) * sizeof(S));
        }
    }
}

}  // namespace
