// What the bins of a box see along one axis of a map, as lists of cells with their weights.
//
// Bilinear samples, whole cells and the integral of the interpolation are all sums of products of a
// weight along one axis and a weight along the other, so that one axis is all there is to know.
// Samples outside of the map are never walked: a box may be as large as it likes.
#pragma once

#include "loops.h"

namespace {

using poolkit::Regions;
using poolkit::Rule;

POOLKIT_INLINE int64_t floor_of(double v) {
    const int64_t whole = static_cast<int64_t>(v);
    return whole - (static_cast<double>(whole) > v);
}
POOLKIT_INLINE int64_t ceil_of(double v) { return -floor_of(-v); }

// One side of a box.
struct Side {
    double begin, extent;  // extent: of a bin (samples, corners) or of the box, in cells
    int64_t grid;          // samples of each bin
    int64_t bins, size;    // of the box, of the map
};

POOLKIT_INLINE Side side_of(const Regions& r, int64_t box, int axis) {
    return {r.place[4 * box + axis], r.place[4 * box + 2 + axis], r.grid[2 * box + axis],
            axis ? r.columns : r.rows, axis ? r.width : r.height};
}

// --- from positions to cells ---------------------------------------------------------------------

// Calls body(position) for the samples of a bin that are on the map or within one cell of it, and
// returns how many they are.
template <class Body>
POOLKIT_INLINE int64_t each_sample(const Side& side, int64_t bin, Body body) {
    if (side.grid < 1) return 0;
    const double base = side.begin + static_cast<double>(bin) * side.extent;
    const double grid = static_cast<double>(side.grid), step = side.extent / grid;
    int64_t first = 0, last = side.grid;
    if (step < 0.0 || step > 0.0) {  // those that may be, and one or two more on either side
        const double a = (-1.0 - base) / step, b = (static_cast<double>(side.size) - base) / step;
        const double low = at_most(a, b) - 2.0, high = at_least(a, b) + 2.0;
        if (low > 0.0) first = low < grid ? floor_of(low) : side.grid;
        if (high < grid) last = high > 0.0 ? ceil_of(high) : 0;
    }
    int64_t seen = 0;
    for (int64_t i = first; i < last; ++i) {
        const double at = base + (static_cast<double>(i) + 0.5) * side.extent / grid;
        if (at < -1.0 || at > static_cast<double>(side.size)) continue;
        body(at);
        ++seen;
    }
    return seen;
}

// Calls put(cell, weight) for the one or two cells that a sample lies between. Beyond the first and
// the last one the border is repeated.
template <class Put>
POOLKIT_INLINE void interpolate(double at, int64_t size, Put put) {
    if (at < 0.0) at = 0.0;
    const int64_t low = static_cast<int64_t>(at);
    if (low >= size - 1) return put(size - 1, 1.0);
    const double beyond = at - static_cast<double>(low);
    put(low, 1.0 - beyond);
    put(low + 1, beyond);
}

// The same where zeros lie beyond the map.
template <class Put>
POOLKIT_INLINE void interpolate_to_zero(double at, int64_t size, Put put) {
    if (!(at > -1.0 && at < static_cast<double>(size))) return;
    const int64_t low = floor_of(at);
    const double beyond = at - static_cast<double>(low);
    if (low >= 0) put(low, 1.0 - beyond);
    if (low + 1 < size) put(low + 1, beyond);
}

// Calls put(cell, weight) for the mean of that interpolation from a to b. On either side of a cell
// its share is linear: the length that is seen, times the share in the middle of that length.
template <class Put>
POOLKIT_INLINE void integrate(double a, double b, int64_t size, Put put) {
    if (!(b > a)) return interpolate_to_zero(a, size, put);
    const double end = static_cast<double>(size);
    if (b <= -1.0 || a >= end) return;
    const int64_t first = a > 0.0 ? floor_of(a) : 0;
    const int64_t last = b < end - 1.0 ? ceil_of(b) : size - 1;
    for (int64_t cell = first; cell <= last; ++cell) {
        const double at = static_cast<double>(cell);
        double weight = 0.0;
        for (int half = 0; half < 2; ++half) {
            const double from = at_least(a, at - (half ? 0.0 : 1.0));
            const double to = at_most(b, at + (half ? 1.0 : 0.0));
            if (!(to > from)) continue;
            const double middle = from + (to - from) * 0.5 - at;
            weight += (to - from) * (1.0 - (middle < 0.0 ? -middle : middle));
        }
        put(cell, weight / (b - a));
    }
}

POOLKIT_INLINE double edge_of(const Side& side, int64_t bin) {
    return side.begin + static_cast<double>(bin) * side.extent / static_cast<double>(side.bins);
}

// Cells [first, last) of a bin of whole cells, those on the map.
POOLKIT_INLINE void cells_of(const Side& side, int64_t bin, int64_t& first, int64_t& last) {
    const int64_t begin = static_cast<int64_t>(side.begin);
    const int64_t extent = static_cast<int64_t>(side.extent);
    first = begin + bin * extent / side.bins;
    last = begin + ((bin + 1) * extent + side.bins - 1) / side.bins;
    first = at_most(at_least(first, int64_t{0}), side.size);
    last = at_most(at_least(last, int64_t{0}), side.size);
}

// --- lists of cells ------------------------------------------------------------------------------

// List number i is [start[i], start[i + 1]).
template <class A>
struct Shares {
    int64_t* start;
    int64_t* at;
    A* weight;
    double* exact;  // the weights while they are put together
    int64_t lists, entries;

    void take(Arena& arena, int64_t most_lists, int64_t most_entries) {
        start = arena.take<int64_t>(most_lists + 1);
        at = arena.take<int64_t>(most_entries);
        weight = arena.take<A>(most_entries);
        exact = arena.take<double>(most_entries);
    }
    POOLKIT_INLINE void clear() { lists = entries = 0; }
    POOLKIT_INLINE void open() { start[lists] = entries; }
    POOLKIT_INLINE void put(int64_t cell, double share) {
        at[entries] = cell;
        exact[entries++] = share;
    }
    // Cells ascend or descend, so one that the list has already is one of its last two. A cell
    // without weight is not seen: its NaN is none of ours.
    POOLKIT_INLINE void add(int64_t cell, double share) {
        if (share == 0.0) return;
        for (int64_t k = entries; k > at_least(start[lists], entries - 2);)
            if (at[--k] == cell) {
                exact[k] += share;
                return;
            }
        put(cell, share);
    }
    POOLKIT_INLINE void close() { start[++lists] = entries; }
    POOLKIT_INLINE void finish() {
        for (int64_t k = 0; k < entries; ++k) weight[k] = static_cast<A>(exact[k]);
    }
    POOLKIT_INLINE int64_t count(int64_t list) const { return start[list + 1] - start[list]; }
};

// A list for the mean of what each bin sees.
template <class A>
POOLKIT_ONCE void share_means(Rule rule, const Side& side, Shares<A>& to) {
    to.clear();
    const auto add = [&](int64_t cell, double share) { to.add(cell, share); };
    for (int64_t bin = 0; bin < side.bins; ++bin) {
        to.open();
        if (rule == Rule::cells) {
            int64_t first, last;
            cells_of(side, bin, first, last);
            const double share = 1.0 / static_cast<double>(last - first);
            for (int64_t cell = first; cell < last; ++cell) to.put(cell, share);
        } else if (rule == Rule::integral) {
            if (side.extent > 0.0)
                integrate(edge_of(side, bin), edge_of(side, bin + 1), side.size, add);
        } else {
            const double share = 1.0 / static_cast<double>(side.grid);
            each_sample(side, bin, [&](double at) {
                interpolate(at, side.size, [&](int64_t cell, double w) { add(cell, w * share); });
            });
        }
        to.close();
    }
    to.finish();
}

// A list for the interpolation at each edge of the bins, which are one more than the bins.
template <class A>
POOLKIT_ONCE void share_edges(const Side& side, Shares<A>& to) {
    to.clear();
    for (int64_t bin = 0; bin <= side.bins; ++bin) {
        to.open();
        interpolate_to_zero(edge_of(side, bin), side.size,
                            [&](int64_t cell, double share) { to.add(cell, share); });
        to.close();
    }
    to.finish();
}

// What a maximum looks at: a list for each sample, and which lists are each bin's.
template <class A>
struct Samples {
    Shares<A> shares;
    int64_t* first;  // one more than there are bins
    bool* outside;   // whether a bin has samples outside of the map, which are 0

    void take(Arena& arena, int64_t bins, int64_t most) {
        shares.take(arena, most, 2 * most);
        first = arena.take<int64_t>(bins + 1);
        outside = arena.take<bool>(bins);
    }
    POOLKIT_INLINE int64_t count(int64_t bin) const { return first[bin + 1] - first[bin]; }
};

template <class A>
POOLKIT_ONCE void list_samples(Rule rule, const Side& side, Samples<A>& to) {
    Shares<A>& shares = to.shares;
    shares.clear();
    const auto put_alone = [&](int64_t cell, double share) {
        shares.open();
        shares.put(cell, share);
        shares.close();
    };
    for (int64_t bin = 0; bin < side.bins; ++bin) {
        to.first[bin] = shares.lists;
        to.outside[bin] = false;
        if (rule == Rule::cells) {
            int64_t first, last;
            cells_of(side, bin, first, last);
            for (int64_t cell = first; cell < last; ++cell) put_alone(cell, 1.0);
            continue;
        }
        const int64_t seen = each_sample(side, bin, [&](double at) {
            if (rule == Rule::corners) {  // each on its own, one without weight too
                const int64_t before = shares.lists;
                interpolate(at, side.size, put_alone);
                if (shares.lists == before + 1) put_alone(side.size - 1, 0.0);
                return;
            }
            shares.open();
            interpolate(at, side.size, [&](int64_t cell, double w) { shares.add(cell, w); });
            shares.close();
        });
        to.outside[bin] = seen < side.grid;
    }
    to.first[side.bins] = shares.lists;
    shares.finish();
}

}  // namespace
