// What a run of tasks reads and writes: an activation in front of a pooling is applied to the
// inputs of a stripe of tasks in scratch memory, one behind it to their outputs.
#pragma once

#include "pooling.h"

namespace {

// The inputs along an axis that outputs [o0, o1) see, begin and end; nothing if begin >= end.
struct Reach {
    int64_t begin, end;
};
Reach reach_of(const Axis& axis, int64_t o0, int64_t o1) {
    if (axis.regular && o0 < o1) {  // as kernels read it: what lies between distant taps, too
        const int64_t first = o0 * axis.stride + axis.offset;
        const int64_t behind =
            (o1 - 1) * axis.stride + axis.offset + (axis.taps - 1) * axis.step + 1;
        return {first > 0 ? first : 0, at_most(behind, axis.size)};
    }
    Reach reach{axis.size, 0};
    for (int64_t o = o0; o < o1; ++o) {
        if (axis.count[o] == 0) continue;
        const int64_t end = axis.begin[o] + (axis.count[o] - 1) * axis.step + 1;
        if (axis.begin[o] < reach.begin) reach.begin = axis.begin[o];
        if (end > reach.end) reach.end = end;
    }
    return reach;
}

// Tasks [first, last), which are not none.
poolkit::Stripe stripe_of(const Geometry& g, int64_t inner, int64_t first, int64_t last) {
    const Axis& axis = g.axis[0];
    int64_t extent = inner, length = inner;  // inputs and outputs behind the first axis
    for (int a = 1; a < g.axes; ++a) extent *= g.axis[a].size, length *= g.axis[a].outputs;
    const Walk walk = walk_of(g, inner);
    if (walk == Walk::spans)
        return {first * axis.size, 1, (last - first) * axis.size, 0, first, last - first};

    // Tasks of a slab, and where in it the stripe begins and ends.
    const int64_t tasks = count_tasks(g, 1, inner);
    const int64_t slab0 = first / tasks, slab1 = (last - 1) / tasks;
    int64_t from = first % tasks, to = (last - 1) % tasks + 1;
    if (walk == Walk::columns) {
        from = from * kColumns, to = at_most(to * kColumns, inner);
        const int64_t out = slab0 * inner + from, outputs = slab1 * inner + to - out;
        if (slab0 == slab1)
            return {slab0 * axis.size * inner + from, axis.size, to - from, inner, out, outputs};
        const int64_t slabs = slab1 + 1 - slab0;
        return {slab0 * axis.size * inner, 1, slabs * axis.size * inner, 0, out, outputs};
    }
    if (walk == Walk::lines) from = from * kLineChunk, to = at_most(to * kLineChunk, axis.outputs);
    const int64_t out = (slab0 * axis.outputs + from) * length;
    const int64_t end = (slab1 * axis.outputs + to) * length;
    Reach reach = reach_of(axis, from, slab0 == slab1 ? to : axis.outputs);
    if (slab0 != slab1) {
        reach.begin += slab0 * axis.size;
        reach.end = slab1 * axis.size + reach_of(axis, 0, to).end;
    } else {
        reach.begin += slab0 * axis.size;
        reach.end += slab0 * axis.size;
    }
    const int64_t inputs = reach.end > reach.begin ? reach.end - reach.begin : 0;
    return {reach.begin * extent, 1, inputs * extent, 0, out, end - out};
}

}  // namespace
