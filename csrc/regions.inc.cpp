// Pooling of regions: the bins of boxes over feature maps. Compiled once per instruction set with
// POOLKIT_ISA set to its name, like kernels.inc.cpp.
//
// Whatever a bin sees, it is rows times columns: bilinear samples, whole cells and the integral of
// the interpolation are all sums of products of a weight along one axis and a weight along the
// other. So a bin is pooled in two steps: its rows are merged down into one line (`down`), which
// all bins beside it share, and that line is merged along (`along`). A cell that many samples see
// is read once. Samples outside the map are never walked, so a box may be as large as it likes.
//
// Lanes are channels. Where channels lie behind the pixels, that is how they are read; else rows
// are merged along the row as it lies, and what is left is transposed. Every lane does the same in
// both layouts and on every instruction set, so the bits are the same.
#include "loops.h"
#include "registry.def"

namespace {

using poolkit::Bins;
using poolkit::Regions;

template <class S>
using Sum_of = typename AddingAccumulator<S>::type;

// Bins whose results are kept in lanes before they are transposed and written, but for the last
// row of them.
constexpr int64_t kHeld = 256;

using poolkit::kTogether;

POOLKIT_INLINE int64_t floor_of(double v) {
    const int64_t whole = static_cast<int64_t>(v);
    return whole - (static_cast<double>(whole) > v);
}
POOLKIT_INLINE int64_t ceil_of(double v) { return -floor_of(-v); }
template <class T>
constexpr POOLKIT_INLINE T at_least(T a, T b) {
    return a < b ? b : a;
}

// --- what the bins of a box see along one axis ---------------------------------------------------

struct Line {
    double place, extent;  // where the box begins, and the size of a bin (samples) or of the box
    int64_t grid;          // samples of each bin
    int64_t bins, size;    // of the box, of the map
};

POOLKIT_INLINE Line line_of(const Regions& r, int64_t box, int axis) {
    return {r.place[4 * box + axis], r.place[4 * box + 2 + axis], r.grid[2 * box + axis],
            axis ? r.columns : r.rows, axis ? r.width : r.height};
}

// Calls body(position) for the samples of a bin that are on the map or within one cell of it, and
// returns how many they are.
template <class Body>
POOLKIT_INLINE int64_t each_sample(const Line& line, int64_t bin, Body body) {
    if (line.grid < 1) return 0;
    const double base = line.place + static_cast<double>(bin) * line.extent;
    const double grid = static_cast<double>(line.grid), step = line.extent / grid;
    int64_t first = 0, last = line.grid;
    if (step < 0.0 || step > 0.0) {  // which samples may be: one more on either side
        const double a = (-1.0 - base) / step, b = (static_cast<double>(line.size) - base) / step;
        const double low = (a < b ? a : b) - 2.0, high = (a < b ? b : a) + 2.0;
        if (low > 0.0) first = low < grid ? floor_of(low) : line.grid;
        if (high < grid) last = high > 0.0 ? ceil_of(high) : 0;
    }
    int64_t seen = 0;
    for (int64_t i = first; i < last; ++i) {
        const double at = base + (static_cast<double>(i) + 0.5) * line.extent / grid;
        if (at < -1.0 || at > static_cast<double>(line.size)) continue;
        body(at);
        ++seen;
    }
    return seen;
}

// Calls put(cell, weight) for the one or two cells that a sample lies between.
template <class Put>
POOLKIT_INLINE void interpolate(double at, int64_t size, Put put) {
    if (at < 0.0) at = 0.0;
    const int64_t low = static_cast<int64_t>(at);
    if (low >= size - 1) return put(size - 1, 1.0);
    const double beyond = at - static_cast<double>(low);
    put(low, 1.0 - beyond);
    put(low + 1, beyond);
}

// Cells [first, last) of a bin of whole cells, those on the map.
POOLKIT_INLINE void cells_of(const Line& line, int64_t bin, int64_t& first, int64_t& last) {
    const int64_t begin = static_cast<int64_t>(line.place);
    const int64_t extent = static_cast<int64_t>(line.extent);
    first = begin + bin * extent / line.bins;
    last = begin + ((bin + 1) * extent + line.bins - 1) / line.bins;
    first = at_most(at_least(first, int64_t{0}), line.size);
    last = at_most(at_least(last, int64_t{0}), line.size);
}

POOLKIT_INLINE double edge_of(const Line& line, int64_t bin) {
    return line.place + static_cast<double>(bin) * line.extent / static_cast<double>(line.bins);
}

// Calls put(cell, weight) for the map's interpolation at one point. Beyond the map are zeros.
template <class Put>
POOLKIT_INLINE void interpolate_to_zero(double at, int64_t size, Put put) {
    if (!(at > -1.0 && at < static_cast<double>(size))) return;
    const int64_t low = floor_of(at);
    const double beyond = at - static_cast<double>(low);
    if (low >= 0) put(low, 1.0 - beyond);
    if (low + 1 < size) put(low + 1, beyond);
}

// Calls put(cell, weight) for the mean of the interpolation from a to b. On either side of a cell
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
        for (int side = 0; side < 2; ++side) {
            const double from = at_least(a, at - (side ? 0.0 : 1.0));
            const double to = at_most(b, at + (side ? 1.0 : 0.0));
            if (!(to > from)) continue;
            const double middle = from + (to - from) * 0.5 - at;
            weight += (to - from) * (1.0 - (middle < 0.0 ? -middle : middle));
        }
        put(cell, weight / (b - a));
    }
}

// Lists of cells with their weights: list number i is [start[i], start[i + 1]).
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

// The mean of what each bin sees.
template <class A>
POOLKIT_ONCE void share_means(Bins kind, const Line& line, Shares<A>& to) {
    to.clear();
    const auto add = [&](int64_t cell, double share) { to.add(cell, share); };
    for (int64_t bin = 0; bin < line.bins; ++bin) {
        to.open();
        if (kind == Bins::cells) {
            int64_t first, last;
            cells_of(line, bin, first, last);
            const double share = 1.0 / static_cast<double>(last - first);
            for (int64_t cell = first; cell < last; ++cell) to.put(cell, share);
        } else if (kind == Bins::integral) {
            if (line.extent > 0.0)
                integrate(edge_of(line, bin), edge_of(line, bin + 1), line.size, add);
        } else {
            const double share = 1.0 / static_cast<double>(line.grid);
            each_sample(line, bin, [&](double at) {
                interpolate(at, line.size, [&](int64_t cell, double w) { add(cell, w * share); });
            });
        }
        to.close();
    }
    to.finish();
}

// The interpolation at the edges of the bins, one more than there are bins.
template <class A>
POOLKIT_ONCE void share_edges(const Line& line, Shares<A>& to) {
    to.clear();
    for (int64_t bin = 0; bin <= line.bins; ++bin) {
        to.open();
        interpolate_to_zero(edge_of(line, bin), line.size,
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
        shares.take(arena, bins * most, bins * most * 2);
        first = arena.take<int64_t>(bins + 1);
        outside = arena.take<bool>(bins);
    }
    POOLKIT_INLINE int64_t count(int64_t bin) const { return first[bin + 1] - first[bin]; }
};

template <class A>
POOLKIT_ONCE void list_samples(Bins kind, const Line& line, Samples<A>& to) {
    Shares<A>& shares = to.shares;
    shares.clear();
    for (int64_t bin = 0; bin < line.bins; ++bin) {
        to.first[bin] = shares.lists;
        to.outside[bin] = false;
        if (kind == Bins::cells) {
            int64_t first, last;
            cells_of(line, bin, first, last);
            for (int64_t cell = first; cell < last; ++cell) {
                shares.open();
                shares.put(cell, 1.0);
                shares.close();
            }
            continue;
        }
        const int64_t seen = each_sample(line, bin, [&](double at) {
            if (kind == Bins::corners) {  // each corner on its own, one without weight too
                int cells = 0;
                const auto put = [&](int64_t cell, double share) {
                    shares.open();
                    shares.put(cell, share);
                    shares.close();
                    ++cells;
                };
                interpolate(at, line.size, put);
                if (cells == 1) put(line.size - 1, 0.0);
                return;
            }
            shares.open();
            interpolate(at, line.size, [&](int64_t cell, double w) { shares.add(cell, w); });
            shares.close();
        });
        to.outside[bin] = seen < line.grid;
    }
    to.first[line.bins] = shares.lists;
    shares.finish();
}

// --- channels in lanes ---------------------------------------------------------------------------

// The columns of the map that a box sees, from left to right.
struct Columns {
    int64_t* at;    // those seen
    int64_t* slot;  // which of them each column of the map is
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
template <class A, class S>
POOLKIT_INLINE void store_upto(S* to, Vec<A> v, int64_t n) {
    if (n >= lanes<A>) return store<A>(to, v);
    if constexpr (same<A, S>) {
        store_first<A>(to, v, n);
    } else {
        S lane[lanes<A>];
        store<A>(lane, v);
        for (int64_t i = 0; i < n; ++i) to[i] = lane[i];
    }
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
                store_upto<A>(pixel(first + p), load<A>(lines + p * L), valid);
            return;
        }
        for (int64_t p = 0; p < n; p += L) {
            Vec<A> tile[L];
            for (int64_t i = 0; i < L; ++i) tile[i] = load<A>(lines + (p + i) * L);
            transpose<A>(tile);
            for (int64_t i = 0; i < valid; ++i)
                store_upto<A>(channel(i) + first + p, tile[i], n - p);
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

template <class S, class A, bool Inside, int N>
struct Rows {  // of a number that is known, else 0
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

// The weighted sum of some rows of the map, `n` of them, in the columns that a box sees.
template <class S, class A>
POOLKIT_ONCE void down(const Group<const S, A>& from, int64_t width, const int64_t* row,
                       const A* weight, int64_t n, const Columns& columns, A* line) {
    constexpr int64_t L = lanes<A>;
    const int64_t pitch = from.channels_last ? width * from.channels : width;
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
template <class S, class A>
POOLKIT_INLINE void down_list(const Group<const S, A>& from, int64_t width, const Shares<A>& rows,
                              int64_t list, const Columns& columns, A* line) {
    const int64_t k = rows.start[list];
    down<S, A>(from, width, rows.at + k, rows.weight + k, rows.count(list), columns, line);
}

POOLKIT_INLINE int64_t groups_of(const Regions& r, int64_t width) {
    return (r.channels + width - 1) / width;
}
// Rows of bins that are held at a time.
POOLKIT_INLINE int64_t held_rows(const Regions& r) {
    return at_most(r.rows, at_least<int64_t>(kHeld / r.columns, 1));
}

// Calls body(place, box, channel) for each vector of channels of each box. What is known of some
// boxes is kept, `place(place, box)`, while they are pooled in one vector of channels after the
// other, whose planes stay in the second level of the cache.
template <class A, class Place, class Body>
POOLKIT_INLINE void each_box(const Regions& r, Place place, Body body) {
    const int64_t groups = groups_of(r, lanes<A>);
    int64_t placed = -1;
    for (int64_t task = r.first; task < r.last; ++task) {
        const int64_t some = task / groups, channel = task % groups * lanes<A>;
        const int64_t first = some * r.together, n = at_most(r.together, r.boxes - first);
        if (some != placed)
            for (int64_t i = 0; i < n; ++i) place(i, r.order[first + i]);
        placed = some;
        for (int64_t i = 0; i < n; ++i) body(i, r.order[first + i], channel);
    }
}

// --- means ---------------------------------------------------------------------------------------

template <class A>
struct MeanBox {
    Shares<A> rows, columns;
    Columns seen;

    void take(const Regions& r, Arena& arena) {
        rows.take(arena, r.rows, r.rows * r.most[0]);
        columns.take(arena, r.columns, r.columns * (r.most[1] + 2) + 2);  // and edges: `move_boxes`
        seen.take(arena, r.width);
    }
    void place(const Regions& r, int64_t box, bool dense) {
        share_means(r.bins, line_of(r, box, 0), rows);
        share_means(r.bins, line_of(r, box, 1), columns);
        seen.number(columns, dense);
    }
};

template <class A>
struct MeanScratch {
    MeanBox<A> box[kTogether];
    A *line, *held;

    MeanScratch(const Regions& r, Arena& arena) {
        for (int64_t i = 0; i < r.together; ++i) box[i].take(r, arena);
        line = take_lines<A>(arena, r.width);
        held = take_lines<A>(arena, held_rows(r) * r.columns);
    }
};

template <class S>
void average_boxes(const Regions& r) {
    using A = Sum_of<S>;
    constexpr int64_t L = lanes<A>;
    Arena arena{static_cast<char*>(r.scratch)};
    MeanScratch<A> s(r, arena);
    const int64_t at_once = held_rows(r);
    const auto place = [&](int64_t i, int64_t box) { s.box[i].place(r, box, !r.channels_last); };
    each_box<A>(r, place, [&](int64_t i, int64_t box, int64_t channel) {
        const MeanBox<A>& b = s.box[i];
        const Group<const S, A> from(static_cast<const S*>(r.x), r.images, r.image[box],
                                     r.height * r.width, channel, r);
        const Group<S, A> to(static_cast<S*>(r.out), r.boxes, box, r.rows * r.columns, channel, r);
        for (int64_t begin = 0; begin < r.rows; begin += at_once) {
            const int64_t end = at_most(begin + at_once, r.rows);
            A* held = s.held;
            for (int64_t row = begin; row < end; ++row, held += r.columns * L) {
                const bool sees = b.rows.count(row) > 0 && b.seen.count > 0;
                if (sees) down_list<S, A>(from, r.width, b.rows, row, b.seen, s.line);
                for (int64_t bin = 0; bin < r.columns; ++bin)
                    store<A>(held + bin * L, sees ? along(b.columns, bin, s.line) : Vec<A>{});
            }
            to.write(begin * r.columns, (end - begin) * r.columns, s.held);
        }
    });
}

// A gradient is gathered in planes of lanes, one for each vector of channels, box after box.
template <class A>
POOLKIT_INLINE A* take_planes(const Regions& r, Arena& arena) {
    return take_lines<A>(arena, r.vectors * r.height * r.width);
}
// Calls body(box, vector, channel, plane) for the boxes of each image in order, then writes.
template <class S, class Place, class Body>
POOLKIT_INLINE void gather_planes(const Regions& r, Sum_of<S>* planes, Place place, Body body) {
    using A = Sum_of<S>;
    constexpr int64_t L = lanes<A>;
    const int64_t pixels = r.height * r.width, groups = groups_of(r, r.vectors * L);
    for (int64_t task = r.first; task < r.last; ++task) {
        const int64_t image = task / groups, channel = task % groups * r.vectors * L;
        const int64_t vectors = at_most(r.vectors, (r.channels - channel + L - 1) / L);
        memset(planes, 0, vectors * pixels * L * sizeof(A));
        for (int64_t k = r.begin[image]; k < r.begin[image + 1]; ++k) {
            place(r.order[k]);
            for (int64_t v = 0; v < vectors; ++v)
                body(r.order[k], channel + v * L, planes + v * pixels * L);
        }
        for (int64_t v = 0; v < vectors; ++v) {
            const Group<S, A> to(static_cast<S*>(r.out), r.images, image, pixels, channel + v * L,
                                 r);
            to.write(0, pixels, planes + v * pixels * L);
        }
    }
}

template <class S>
void spread_boxes(const Regions& r) {
    using A = Sum_of<S>;
    constexpr int64_t L = lanes<A>;
    Arena arena{static_cast<char*>(r.scratch)};
    MeanScratch<A> s(r, arena);
    A* planes = take_planes<A>(r, arena);
    const int64_t at_once = held_rows(r);
    MeanBox<A>& b = s.box[0];
    const auto place = [&](int64_t box) { b.place(r, box, false); };
    gather_planes<S>(r, planes, place, [&](int64_t box, int64_t channel, A* plane) {
        if (b.rows.entries == 0 || b.columns.entries == 0) return;
        const Group<const S, A> grad(static_cast<const S*>(r.grad), r.boxes, box,
                                     r.rows * r.columns, channel, r);
        for (int64_t row = 0; row < r.rows; ++row) {
            if (row % at_once == 0)
                grad.read(row * r.columns, at_most(at_once, r.rows - row) * r.columns, s.held);
            const A* share = s.held + row % at_once * r.columns * L;
            memset(s.line, 0, b.seen.count * L * sizeof(A));
            for (int64_t bin = 0; bin < r.columns; ++bin)
                for (int64_t k = b.columns.start[bin]; k < b.columns.start[bin + 1]; ++k) {
                    A* to = s.line + b.columns.at[k] * L;
                    store<A>(to, load<A>(to) +
                                     broadcast<A>(b.columns.weight[k]) * load<A>(share + bin * L));
                }
            for (int64_t k = b.rows.start[row]; k < b.rows.start[row + 1]; ++k) {
                const Vec<A> weight = broadcast<A>(b.rows.weight[k]);
                A* to = plane + b.rows.at[k] * r.width * L;
                for (int64_t j = 0; j < b.seen.count; ++j) {
                    A* cell = to + b.seen.at[j] * L;
                    store<A>(cell, load<A>(cell) + weight * load<A>(s.line + j * L));
                }
            }
        }
    });
}

// --- maxima --------------------------------------------------------------------------------------

template <class A>
struct MaxBox {
    Samples<A> rows, columns;
    Columns seen;

    void take(const Regions& r, Arena& arena) {
        rows.take(arena, r.rows, r.most[0]);
        columns.take(arena, r.columns, r.most[1]);
        seen.take(arena, r.width);
    }
    void place(const Regions& r, int64_t box) {
        list_samples(r.bins, line_of(r, box, 0), rows);
        list_samples(r.bins, line_of(r, box, 1), columns);
    }
};

template <class A>
struct MaxScratch {
    MaxBox<A> box[kTogether];
    A *line, *held;
    Code<A>* codes;

    MaxScratch(const Regions& r, Arena& arena) {
        for (int64_t i = 0; i < r.together; ++i) box[i].take(r, arena);
        line = take_lines<A>(arena, r.width);
        held = take_lines<A>(arena, held_rows(r) * r.columns);
        codes = arena.take<Code<A>>(held_rows(r) * r.columns * lanes<A>);
    }
};

POOLKIT_INLINE int64_t code_at(const Regions& r, int64_t place) {
    if (r.code_bytes == 1) return static_cast<const uint8_t*>(r.codes)[place];
    if (r.code_bytes == 2) return static_cast<const uint16_t*>(r.codes)[place];
    return static_cast<const uint32_t*>(r.codes)[place];
}
POOLKIT_INLINE void put_code(const Regions& r, int64_t place, uint64_t code) {
    if (r.code_bytes == 1)
        static_cast<uint8_t*>(r.codes)[place] = static_cast<uint8_t>(code);
    else if (r.code_bytes == 2)
        static_cast<uint16_t*>(r.codes)[place] = static_cast<uint16_t>(code);
    else
        static_cast<uint32_t*>(r.codes)[place] = static_cast<uint32_t>(code);
}

// The code of a sample: its number among those of its bin that are on the map, row by row;
// `nowhere` for the zeros outside of it.
template <class S>
void pick_boxes(const Regions& r) {
    using A = Sum_of<S>;
    using C = Code<A>;
    constexpr int64_t L = lanes<A>;
    Arena arena{static_cast<char*>(r.scratch)};
    MaxScratch<A> s(r, arena);
    const int64_t at_once = held_rows(r), bins = r.rows * r.columns;
    const Vec<C> nowhere = broadcast<C>(static_cast<C>(r.nowhere));
    const auto place = [&](int64_t i, int64_t box) {
        s.box[i].place(r, box);
        s.box[i].seen.number(s.box[i].columns.shares, !r.channels_last);
    };
    each_box<A>(r, place, [&](int64_t slot, int64_t box, int64_t channel) {
        const MaxBox<A>& b = s.box[slot];
        const Group<const S, A> from(static_cast<const S*>(r.x), r.images, r.image[box],
                                     r.height * r.width, channel, r);
        const Group<S, A> to(static_cast<S*>(r.out), r.boxes, box, bins, channel, r);
        for (int64_t begin = 0; begin < r.rows; begin += at_once) {
            const int64_t end = at_most(begin + at_once, r.rows);
            for (int64_t row = begin; row < end; ++row) {
                A* held = s.held + (row - begin) * r.columns * L;
                C* codes = s.codes + (row - begin) * r.columns * L;
                for (int64_t bin = 0; bin < r.columns; ++bin) {
                    store<A>(held + bin * L, Vec<A>{});
                    store<C>(codes + bin * L, nowhere);
                }
                if (b.seen.count == 0) continue;
                const int64_t first = b.rows.first[row], samples = b.rows.count(row);
                for (int64_t i = 0; i < samples; ++i) {
                    down_list<S, A>(from, r.width, b.rows.shares, first + i, b.seen, s.line);
                    for (int64_t bin = 0; bin < r.columns; ++bin) {
                        const int64_t beside = b.columns.first[bin], n = b.columns.count(bin);
                        if (n == 0) continue;
                        Vec<A> best = load<A>(held + bin * L);
                        Vec<C> code = load<C>(codes + bin * L);
                        for (int64_t j = 0; j < n; ++j) {
                            const Vec<A> v = along(b.columns.shares, beside + j, s.line);
                            const Vec<C> number = broadcast<C>(static_cast<C>(i * n + j));
                            if (i + j == 0) {
                                best = v;
                                code = number;
                                continue;
                            }
                            const auto taken = (v > best) | (v != v);
                            best = taken ? v : best;
                            code = taken ? number : code;
                        }
                        store<A>(held + bin * L, best);
                        store<C>(codes + bin * L, code);
                    }
                }
                // The zeros outside come last, so that of equal values one on the map is taken.
                for (int64_t bin = 0; bin < r.columns; ++bin) {
                    if (!b.rows.outside[row] && !b.columns.outside[bin]) continue;
                    const Vec<A> best = load<A>(held + bin * L);
                    const auto taken = best < Vec<A>{};
                    store<A>(held + bin * L, taken ? Vec<A>{} : best);
                    store<C>(codes + bin * L, taken ? nowhere : load<C>(codes + bin * L));
                }
            }
            to.write(begin * r.columns, (end - begin) * r.columns, s.held);
            if (!r.codes) continue;
            const int64_t origin = to.base - static_cast<S*>(r.out);
            for (int64_t lane = 0; lane < to.valid; ++lane)
                for (int64_t bin = 0; bin < (end - begin) * r.columns; ++bin)
                    put_code(r, origin + (to.element(lane, begin * r.columns + bin) - to.base),
                             s.codes[bin * L + lane]);
        }
    });
}

// Calls body(pixel, weight) for the cells of the sample that a code names.
template <class A, class Body>
POOLKIT_INLINE void each_cell(const Regions& r, const MaxBox<A>& b, int64_t row, int64_t bin,
                              int64_t code, Body body) {
    const uint32_t n = static_cast<uint32_t>(b.columns.count(bin));
    if (code == r.nowhere || n == 0) return;
    const uint32_t number = static_cast<uint32_t>(code);
    const int64_t down = b.rows.first[row] + number / n;
    const int64_t beside = b.columns.first[bin] + number % n;
    const Shares<A>&y = b.rows.shares, &x = b.columns.shares;
    for (int64_t i = y.start[down]; i < y.start[down + 1]; ++i)
        for (int64_t j = x.start[beside]; j < x.start[beside + 1]; ++j)
            body(y.at[i] * r.width + x.at[j], y.weight[i], x.weight[j]);
}

template <class S>
void scatter_boxes(const Regions& r) {
    using A = Sum_of<S>;
    constexpr int64_t L = lanes<A>;
    Arena arena{static_cast<char*>(r.scratch)};
    MaxScratch<A> s(r, arena);
    A* planes = take_planes<A>(r, arena);
    MaxBox<A>& b = s.box[0];
    const auto place = [&](int64_t box) { b.place(r, box); };
    gather_planes<S>(r, planes, place, [&](int64_t box, int64_t channel, A* plane) {
        const S* grads = static_cast<const S*>(r.grad);
        const Group<const S, A> grad(grads, r.boxes, box, r.rows * r.columns, channel, r);
        for (int64_t lane = 0; lane < grad.valid; ++lane)
            for (int64_t row = 0; row < r.rows; ++row)
                for (int64_t bin = 0; bin < r.columns; ++bin) {
                    const S* at = grad.element(lane, row * r.columns + bin);
                    const A share = static_cast<A>(widen(*at));
                    each_cell(r, b, row, bin, code_at(r, at - grads),
                              [&](int64_t pixel, A down, A beside) {
                                  plane[pixel * L + lane] += down * (beside * share);
                              });
                }
    });
}

// The adjoint: the values that the codes name.
template <class S>
void take_boxes(const Regions& r) {
    using A = Sum_of<S>;
    Arena arena{static_cast<char*>(r.scratch)};
    MaxScratch<A> s(r, arena);
    S* outs = static_cast<S*>(r.out);
    const auto place = [&](int64_t i, int64_t box) { s.box[i].place(r, box); };
    each_box<A>(r, place, [&](int64_t i, int64_t box, int64_t channel) {
        const MaxBox<A>& b = s.box[i];
        const Group<const S, A> from(static_cast<const S*>(r.x), r.images, r.image[box],
                                     r.height * r.width, channel, r);
        const Group<S, A> to(outs, r.boxes, box, r.rows * r.columns, channel, r);
        for (int64_t lane = 0; lane < to.valid; ++lane)
            for (int64_t row = 0; row < r.rows; ++row)
                for (int64_t bin = 0; bin < r.columns; ++bin) {
                    S* at = to.element(lane, row * r.columns + bin);
                    A sum = 0;
                    each_cell(r, b, row, bin, code_at(r, at - outs),
                              [&](int64_t pixel, A down, A beside) {
                                  const A x = static_cast<A>(widen(*from.element(lane, pixel)));
                                  sum += down * (beside * x);
                              });
                    *at = narrow<S>(sum);
                }
    });
}

// --- the gradient of an integral's limits --------------------------------------------------------

// A mean from a to b moves with its limits as the difference between itself and what lies at the
// limit. Writes (y1, x1, y2, x2) for each box, in cells.
template <class S>
void move_boxes(const Regions& r) {
    using A = Sum_of<S>;
    constexpr int64_t L = lanes<A>;
    Arena arena{static_cast<char*>(r.scratch)};
    MeanScratch<A> s(r, arena);
    MeanBox<A>& b = s.box[0];
    Shares<A> row_edges, column_edges;
    row_edges.take(arena, r.rows + 1, (r.rows + 1) * 2);
    column_edges.take(arena, r.columns + 1, (r.columns + 1) * 2);
    A* above = take_lines<A>(arena, r.columns);
    A* below = take_lines<A>(arena, r.columns);
    double* out = static_cast<double*>(r.out);
    const int64_t bins = r.rows * r.columns, at_once = held_rows(r);
    for (int64_t box = r.first; box < r.last; ++box) {
        double moved[4] = {};
        const Line y = line_of(r, box, 0), x = line_of(r, box, 1);
        const bool any = y.extent > 0.0 && x.extent > 0.0;
        if (any) {
            share_means(r.bins, y, b.rows);
            share_means(r.bins, x, b.columns);
            share_edges(y, row_edges);
            share_edges(x, column_edges);
            // Means and edges name slots of the same columns: those that either sees.
            const int64_t n = b.columns.entries;
            for (int64_t k = 0; k < column_edges.entries; ++k)
                b.columns.put(column_edges.at[k], 0.0);
            b.seen.number(b.columns, !r.channels_last);
            for (int64_t k = 0; k < column_edges.entries; ++k)
                column_edges.at[k] = b.columns.at[n + k];
        }
        for (int64_t channel = 0; any && channel < r.channels; channel += L) {
            const Group<const S, A> from(static_cast<const S*>(r.x), r.images, r.image[box],
                                         r.height * r.width, channel, r);
            const Group<const S, A> grad(static_cast<const S*>(r.grad), r.boxes, box, bins, channel,
                                         r);
            const auto merge = [&](const Shares<A>& rows, int64_t list) {
                if (rows.count(list) && b.seen.count)
                    down_list<S, A>(from, r.width, rows, list, b.seen, s.line);
                else
                    memset(s.line, 0, b.seen.count * L * sizeof(A));
            };
            const auto edge = [&](int64_t row, A* to) {
                merge(row_edges, row);
                for (int64_t bin = 0; bin < r.columns; ++bin)
                    store<A>(to + bin * L, along(b.columns, bin, s.line));
            };
            Vec<A> sum[4] = {};
            edge(0, below);
            for (int64_t row = 0; row < r.rows; ++row) {
                if (row % at_once == 0)
                    grad.read(row * r.columns, at_most(at_once, r.rows - row) * r.columns, s.held);
                A* swapped = above;
                above = below;
                below = swapped;
                edge(row + 1, below);
                merge(b.rows, row);
                const A down_first = static_cast<A>(static_cast<double>(row) / r.rows);
                const A down_last = static_cast<A>(static_cast<double>(row + 1) / r.rows);
                const A* shares = s.held + row % at_once * r.columns * L;
                Vec<A> left = along(column_edges, 0, s.line);
                for (int64_t bin = 0; bin < r.columns; ++bin) {
                    const Vec<A> share = load<A>(shares + bin * L);
                    const Vec<A> mean = along(b.columns, bin, s.line);
                    const Vec<A> right = along(column_edges, bin + 1, s.line);
                    const Vec<A> from_y = share * (mean - load<A>(above + bin * L));
                    const Vec<A> to_y = share * (load<A>(below + bin * L) - mean);
                    const Vec<A> from_x = share * (mean - left), to_x = share * (right - mean);
                    const A first = static_cast<A>(static_cast<double>(bin) / r.columns);
                    const A last = static_cast<A>(static_cast<double>(bin + 1) / r.columns);
                    sum[0] += from_y * broadcast<A>(A(1) - down_first) +
                              to_y * broadcast<A>(A(1) - down_last);
                    sum[1] +=
                        from_x * broadcast<A>(A(1) - first) + to_x * broadcast<A>(A(1) - last);
                    sum[2] += from_y * broadcast<A>(down_first) + to_y * broadcast<A>(down_last);
                    sum[3] += from_x * broadcast<A>(first) + to_x * broadcast<A>(last);
                    left = right;
                }
            }
            for (int side = 0; side < 4; ++side)
                for (int64_t lane = 0; lane < grad.valid; ++lane)
                    moved[side] += static_cast<double>(sum[side][lane]);
        }
        for (int side = 0; side < 4; ++side) {
            const Line& line = side % 2 ? x : y;
            out[4 * box + side] =
                any ? moved[side] * static_cast<double>(line.bins) / line.extent : 0.0;
        }
    }
}

// --- the table -----------------------------------------------------------------------------------

template <class S>
int64_t mean_scratch(const Regions& r) {
    Arena arena{nullptr};
    MeanScratch<Sum_of<S>> counted(r, arena);
    return arena.used;
}
template <class S>
int64_t spread_scratch(const Regions& r) {
    Arena arena{nullptr};
    MeanScratch<Sum_of<S>> counted(r, arena);
    take_planes<Sum_of<S>>(r, arena);
    return arena.used;
}
template <class S>
int64_t max_scratch(const Regions& r) {
    Arena arena{nullptr};
    MaxScratch<Sum_of<S>> counted(r, arena);
    return arena.used;
}
template <class S>
int64_t scatter_scratch(const Regions& r) {
    Arena arena{nullptr};
    MaxScratch<Sum_of<S>> counted(r, arena);
    take_planes<Sum_of<S>>(r, arena);
    return arena.used;
}
template <class S>
int64_t move_scratch(const Regions& r) {
    using A = Sum_of<S>;
    Arena arena{nullptr};
    MeanScratch<A> counted(r, arena);
    Shares<A> edges;
    edges.take(arena, r.rows + 1, (r.rows + 1) * 2);
    edges.take(arena, r.columns + 1, (r.columns + 1) * 2);
    take_lines<A>(arena, r.columns);
    take_lines<A>(arena, r.columns);
    return arena.used;
}

template <class S>
constexpr poolkit::RegionKernels region_kernels(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype,
                lanes<Sum_of<S>>,
                {mean_scratch<S>, average_boxes<S>},
                {spread_scratch<S>, spread_boxes<S>},
                {max_scratch<S>, pick_boxes<S>},
                {scatter_scratch<S>, scatter_boxes<S>},
                {max_scratch<S>, take_boxes<S>},
                {move_scratch<S>, move_boxes<S>}};
    else
        return {};
}

#define POOLKIT_REGIONS(UNUSED, DTYPE, S) region_kernels<S>(#DTYPE),
constexpr poolkit::RegionKernels kRegionKernels[] = {POOLKIT_DTYPES(POOLKIT_REGIONS, )};

#define POOLKIT_JOIN(a, b) a##b
#define POOLKIT_SYMBOL(isa) POOLKIT_JOIN(poolkit_regions_, isa)

}  // namespace

extern "C" const poolkit::RegionTable POOLKIT_SYMBOL(POOLKIT_ISA);
extern "C" const poolkit::RegionTable POOLKIT_SYMBOL(POOLKIT_ISA) = {
    kRegionKernels, sizeof kRegionKernels / sizeof kRegionKernels[0]};
