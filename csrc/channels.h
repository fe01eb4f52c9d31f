// Channels of maps in lanes: how they are read and written, in either layout, and weighted sums of
// cells.
//
// Where channels lie behind the pixels, that is how they are read; else rows are merged along the
// row as it lies, and what is left is transposed. Every lane does the same in both layouts and on
// every instruction set, so the bits are the same.
#pragma once

#include "across.h"
#include "bins.h"

namespace {

// The columns of the map that a box sees, from left to right.
struct Columns {
    int64_t* at;    // those seen, `count` of them
    int64_t* slot;  // which of these each column of the map is
    int64_t first, count;

    void take(Arena& arena, int64_t width) {
        at = arena.take<int64_t>(width);
        slot = arena.take<int64_t>(width);
    }
    // All between the first and the last one (`dense`), or those seen alone. The shares then name
    // slots instead of columns.
    template <class A>
    POOLKIT_ONCE void number(Shares<A>& shares, bool dense) {
        first = count = 0;
        if (shares.entries == 0) return;
        int64_t last = first = shares.at[0];
        for (int64_t k = 1; k < shares.entries; ++k) {
            first = at_most(first, shares.at[k]);
            last = at_least(last, shares.at[k]);
        }
        for (int64_t x = first; x <= last; ++x) slot[x] = dense;
        for (int64_t k = 0; k < shares.entries; ++k) slot[shares.at[k]] = 1;
        for (int64_t x = first; x <= last; ++x) {
            if (!slot[x]) continue;
            at[count] = x;
            slot[x] = count++;
        }
        for (int64_t k = 0; k < shares.entries; ++k) shares.at[k] = slot[shares.at[k]];
    }
};

// Rows become columns: as many steps as it takes to double 1 to the number of lanes, in each of
// which the first half of the rows is zipped with the second. Unrolled, so that rows stay in
// registers: as a loop it was half the time of a mean.
template <class A, int Done = 1>
POOLKIT_INLINE void transpose(Vec<A> (&v)[lanes<A>]) {
    constexpr int n = lanes<A>;
    if constexpr (Done < n) {
        Vec<A> zipped[n];
#pragma GCC unroll 16
        for (int i = 0; i < n / 2; ++i) {
            zipped[2 * i] = zip_first<A>(v[i], v[i + n / 2]);
            zipped[2 * i + 1] = zip_second<A>(v[i], v[i + n / 2]);
        }
        transpose<A, 2 * Done>(zipped);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) v[i] = zipped[i];
    }
}

// A vector from an array that may end within it.
template <class A, class S>
POOLKIT_INLINE Vec<A> load_upto(const S* from, const S* end) {
    const int64_t left = end - from;
    return left >= lanes<A> ? load<A>(from) : load_first<A>(from, left, Vec<A>{});
}

// One vector of channels of one image, or of the results of one box: (channels, pixels) or
// (pixels, channels).
template <class S, class A>
struct Group {
    S* base;
    S* end;  // of the whole array
    int64_t pixels, channels;
    bool channels_last;
    int64_t valid;  // lanes that are channels

    Group(S* array, int64_t items, int64_t item, int64_t pixels_, int64_t channel, const Regions& r)
        : base(array + item * pixels_ * r.channels + channel * (r.channels_last ? 1 : pixels_)),
          end(array + items * pixels_ * r.channels),
          pixels(pixels_),
          channels(r.channels),
          channels_last(r.channels_last),
          valid(at_most<int64_t>(lanes<A>, r.channels - channel)) {}

    // Lanes without a channel read the last one again.
    POOLKIT_INLINE S* channel(int64_t lane) const {
        return base + at_most(lane, valid - 1) * pixels;
    }
    POOLKIT_INLINE S* pixel(int64_t p) const { return base + p * channels; }
    POOLKIT_INLINE S* element(int64_t lane, int64_t p) const {
        return channels_last ? pixel(p) + lane : base + lane * pixels + p;
    }

    // Pixels [first, first + n) as n lines of lanes. Writes whole tiles.
    POOLKIT_ONCE void read(int64_t first, int64_t n, A* lines) const {
        constexpr int64_t L = lanes<A>;
        if (channels_last) {
            for (int64_t p = 0; p < n; ++p)
                store<A>(lines + p * L, load_upto<A>(pixel(first + p), end));
            return;
        }
        for (int64_t p = 0; p < n; p += L) {
            Vec<A> tile[L];
            for (int64_t i = 0; i < L; ++i) tile[i] = load_upto<A>(channel(i) + first + p, end);
            transpose<A>(tile);
            for (int64_t i = 0; i < L; ++i) store<A>(lines + (p + i) * L, tile[i]);
        }
    }
    // The same back. Reads whole tiles of lines.
    POOLKIT_ONCE void write(int64_t first, int64_t n, const A* lines) const {
        constexpr int64_t L = lanes<A>;
        if (channels_last) {
            for (int64_t p = 0; p < n; ++p)
                store_upto<A>(pixel(first + p), 0, valid, load<A>(lines + p * L));
            return;
        }
        for (int64_t p = 0; p < n; p += L) {
            Vec<A> tile[L];
            for (int64_t i = 0; i < L; ++i) tile[i] = load<A>(lines + (p + i) * L);
            transpose<A>(tile);
            for (int64_t i = 0; i < valid; ++i) store_upto<A>(channel(i) + first, p, n, tile[i]);
        }
    }
};

// Lines of lanes, and room for the rest of the last tile.
template <class A>
POOLKIT_INLINE A* take_lines(Arena& arena, int64_t lines) {
    return arena.take<A>((lines + lanes<A>)*lanes<A>);
}

// Calls body(constant) for the few rows that are merged, so that it unrolls.
template <class Body>
POOLKIT_INLINE void with_rows(int64_t n, Body body) {
    if (n == 1)
        body(Constant<1>{});
    else if (n == 2)
        body(Constant<2>{});
    else if (n == 3)
        body(Constant<3>{});
    else if (n == 4)
        body(Constant<4>{});
    else
        body(Constant<0>{});
}

// Weighted rows of the map. N is their number if it is known, else 0. Unless they are `Inside` the
// map by whole vectors, its end is watched.
template <class S, class A, bool Inside, int N>
struct Rows {
    const Group<const S, A>& from;
    const int64_t* row;
    const A* weight;
    int64_t n, pitch;
    int64_t offset[N ? N : 1];
    Vec<A> share[N ? N : 1];

    POOLKIT_INLINE Rows(const Group<const S, A>& from_, const int64_t* row_, const A* weight_,
                        int64_t n_, int64_t pitch_)
        : from(from_), row(row_), weight(weight_), n(n_), pitch(pitch_) {
        for (int t = 0; t < N; ++t) {
            offset[t] = row[t] * pitch;
            share[t] = broadcast<A>(weight[t]);
        }
    }
    POOLKIT_INLINE Vec<A> term(const S* at, int64_t t) const {
        const S* from_row = at + (N ? offset[t] : row[t] * pitch);
        return (N ? share[t] : broadcast<A>(weight[t])) *
               (Inside ? load<A>(from_row) : load_upto<A>(from_row, from.end));
    }
    POOLKIT_INLINE Vec<A> merged(const S* at) const {
        Vec<A> acc = term(at, 0);
        for (int64_t t = 1; t < (N ? N : n); ++t) acc += term(at, t);
        return acc;
    }
};

template <class S, class A, bool Inside, int N>
POOLKIT_INLINE void down_rows(const Rows<S, A, Inside, N>& rows, const Columns& columns, A* line) {
    constexpr int64_t L = lanes<A>;
    const Group<const S, A>& from = rows.from;
    if (from.channels_last) {
        for (int64_t j = 0; j < columns.count; ++j)
            store<A>(line + j * L, rows.merged(from.pixel(columns.at[j])));
        return;
    }
    for (int64_t j = 0; j < columns.count; j += L) {
        Vec<A> tile[L];
        for (int64_t i = 0; i < L; ++i) tile[i] = rows.merged(from.channel(i) + columns.first + j);
        transpose<A>(tile);
        for (int64_t i = 0; i < L; ++i) store<A>(line + (j + i) * L, tile[i]);
    }
}

// The weighted sum of the rows of one list, in the columns that a box sees.
template <class S, class A>
POOLKIT_ONCE void down(const Group<const S, A>& from, int64_t width, const Shares<A>& rows,
                       int64_t list, const Columns& columns, A* line) {
    constexpr int64_t L = lanes<A>;
    const int64_t n = rows.count(list), pitch = from.channels_last ? width * from.channels : width;
    const int64_t* row = rows.at + rows.start[list];
    const A* weight = rows.weight + rows.start[list];
    int64_t last = row[0];
    for (int64_t t = 1; t < n; ++t) last = at_least(last, row[t]);
    const S* end =
        (from.channels_last ? from.pixel(columns.at[columns.count - 1]) + L
                            : from.channel(L) + columns.first + round_up(columns.count, L)) +
        last * pitch;
    with_rows(n, [&](auto known) {
        constexpr int N = decltype(known)::value;
        if (end <= from.end)
            down_rows(Rows<S, A, true, N>(from, row, weight, n, pitch), columns, line);
        else
            down_rows(Rows<S, A, false, N>(from, row, weight, n, pitch), columns, line);
    });
}

// The weighted sum of the columns of one list, in such a line.
template <class A>
POOLKIT_INLINE Vec<A> along(const Shares<A>& shares, int64_t list, const A* line) {
    constexpr int64_t L = lanes<A>;
    int64_t k = shares.start[list];
    const int64_t end = shares.start[list + 1];
    if (k == end) return Vec<A>{};
    Vec<A> acc = broadcast<A>(shares.weight[k]) * load<A>(line + shares.at[k] * L);
    for (++k; k < end; ++k)
        acc += broadcast<A>(shares.weight[k]) * load<A>(line + shares.at[k] * L);
    return acc;
}

}  // namespace
