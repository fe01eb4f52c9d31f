// Pooling of regions: boxes over feature maps, each cut into bins. Compiled once per instruction
// set with POOLKIT_ISA set to its name, like kernels.inc.cpp.
//
// Whatever a bin sees (bins.h) is rows times columns, and lanes are channels (channels.h). So a bin
// is pooled in two steps: its rows are merged into one line (`down`), which all bins beside it
// share, and that line is merged (`along`). A cell that many samples see is read once.
//
// Each step of regions.h is a struct: what it takes of the scratch memory, and how it runs.
#include "channels.h"
#include "registry.def"

namespace {

using poolkit::kTogether;

template <class S>
using AccumulatorOf = typename AddingAccumulator<S>::type;

// Bins whose results are kept in lanes before they are transposed and written, but for the last
// row of them.
constexpr int64_t kHeld = 256;

// Rows of bins that are held at a time.
POOLKIT_INLINE int64_t held_rows(const Regions& r) {
    return at_most(r.rows, at_least<int64_t>(kHeld / r.columns, 1));
}

template <class S>
POOLKIT_INLINE Group<const S, AccumulatorOf<S>> map_of(const Regions& r, int64_t box,
                                                       int64_t channel) {
    return {static_cast<const S*>(r.x), r.images, r.image[box], r.height * r.width, channel, r};
}
template <class S>
POOLKIT_INLINE Group<S, AccumulatorOf<S>> result_of(const Regions& r, int64_t box,
                                                    int64_t channel) {
    return {static_cast<S*>(r.out), r.boxes, box, r.rows * r.columns, channel, r};
}
template <class S>
POOLKIT_INLINE Group<const S, AccumulatorOf<S>> grad_of(const Regions& r, int64_t box,
                                                        int64_t channel) {
    return {static_cast<const S*>(r.grad), r.boxes, box, r.rows * r.columns, channel, r};
}

// Calls body(place, box, channel) for each vector of channels of each box. What is known of some
// boxes is kept, `place(place, box)`, while they are pooled in one vector of channels after the
// other, whose planes stay in the second level of the cache.
template <class A, class Place, class Body>
POOLKIT_INLINE void each_box(const Regions& r, Place place, Body body) {
    constexpr int64_t L = lanes<A>;
    const int64_t groups = (r.channels + L - 1) / L;
    int64_t placed = -1;
    for (int64_t task = r.first; task < r.last; ++task) {
        const int64_t some = task / groups, channel = task % groups * L;
        const int64_t first = some * r.together, n = at_most(r.together, r.boxes - first);
        if (some != placed)
            for (int64_t i = 0; i < n; ++i) place(i, r.order[first + i]);
        placed = some;
        for (int64_t i = 0; i < n; ++i) body(i, r.order[first + i], channel);
    }
}

// A gradient is gathered in planes of lanes, one for each vector of channels, box after box.
template <class A>
POOLKIT_INLINE A* take_planes(const Regions& r, Arena& arena) {
    return take_lines<A>(arena, r.vectors * r.height * r.width);
}
// Calls body(box, channel, plane) for the boxes of each image in order, then writes.
template <class S, class Place, class Body>
POOLKIT_INLINE void gather_planes(const Regions& r, AccumulatorOf<S>* planes, Place place,
                                  Body body) {
    using A = AccumulatorOf<S>;
    constexpr int64_t L = lanes<A>;
    const int64_t pixels = r.height * r.width;
    const int64_t groups = (r.channels + r.vectors * L - 1) / (r.vectors * L);
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

// --- means ---------------------------------------------------------------------------------------

template <class A>
struct MeanBox {
    Shares<A> rows, columns;
    Columns seen;

    void take(const Regions& r, Arena& arena) {
        rows.take(arena, r.rows, r.room[0]);
        columns.take(arena, r.columns, r.room[1] + 2 * (r.columns + 1));  // and edges: `Move`
        seen.take(arena, r.width);
    }
    void place(const Regions& r, int64_t box, bool dense) {
        share_means(r.rule, side_of(r, box, 0), rows);
        share_means(r.rule, side_of(r, box, 1), columns);
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
struct Average : MeanScratch<AccumulatorOf<S>> {
    using A = AccumulatorOf<S>;
    using MeanScratch<A>::MeanScratch;

    void run(const Regions& r) {
        constexpr int64_t L = lanes<A>;
        const int64_t at_once = held_rows(r);
        const auto place = [&](int64_t i, int64_t box) {
            this->box[i].place(r, box, !r.channels_last);
        };
        each_box<A>(r, place, [&](int64_t i, int64_t box, int64_t channel) {
            const MeanBox<A>& b = this->box[i];
            const auto from = map_of<S>(r, box, channel);
            const auto to = result_of<S>(r, box, channel);
            for (int64_t begin = 0; begin < r.rows; begin += at_once) {
                const int64_t end = at_most(begin + at_once, r.rows);
                A* held = this->held;
                for (int64_t row = begin; row < end; ++row, held += r.columns * L) {
                    const bool sees = b.rows.count(row) > 0 && b.seen.count > 0;
                    if (sees) down<S, A>(from, r.width, b.rows, row, b.seen, this->line);
                    for (int64_t bin = 0; bin < r.columns; ++bin)
                        store<A>(held + bin * L,
                                 sees ? along(b.columns, bin, this->line) : Vec<A>{});
                }
                to.write(begin * r.columns, (end - begin) * r.columns, this->held);
            }
        });
    }
};

template <class S>
struct Spread : MeanScratch<AccumulatorOf<S>> {
    using A = AccumulatorOf<S>;
    A* planes;

    Spread(const Regions& r, Arena& arena)
        : MeanScratch<A>(r, arena), planes(take_planes<A>(r, arena)) {}

    void run(const Regions& r) {
        constexpr int64_t L = lanes<A>;
        const int64_t at_once = held_rows(r);
        MeanBox<A>& b = this->box[0];
        A* line = this->line;
        const auto place = [&](int64_t box) { b.place(r, box, false); };
        gather_planes<S>(r, planes, place, [&](int64_t box, int64_t channel, A* plane) {
            if (b.rows.entries == 0 || b.columns.entries == 0) return;
            const auto grad = grad_of<S>(r, box, channel);
            for (int64_t row = 0; row < r.rows; ++row) {
                if (row % at_once == 0)
                    grad.read(row * r.columns, at_most(at_once, r.rows - row) * r.columns,
                              this->held);
                const A* share = this->held + row % at_once * r.columns * L;
                memset(line, 0, b.seen.count * L * sizeof(A));
                for (int64_t bin = 0; bin < r.columns; ++bin)
                    for (int64_t k = b.columns.start[bin]; k < b.columns.start[bin + 1]; ++k)
                        add_to(line + b.columns.at[k] * L, broadcast<A>(b.columns.weight[k]),
                               share + bin * L);
                for (int64_t k = b.rows.start[row]; k < b.rows.start[row + 1]; ++k) {
                    const Vec<A> weight = broadcast<A>(b.rows.weight[k]);
                    A* to = plane + b.rows.at[k] * r.width * L;
                    for (int64_t j = 0; j < b.seen.count; ++j)
                        add_to(to + b.seen.at[j] * L, weight, line + j * L);
                }
            }
        });
    }

    static POOLKIT_INLINE void add_to(A* to, Vec<A> weight, const A* share) {
        store<A>(to, load<A>(to) + weight * load<A>(share));
    }
};

// --- maxima --------------------------------------------------------------------------------------

template <class A>
struct MaxBox {
    Samples<A> rows, columns;
    Columns seen;

    void take(const Regions& r, Arena& arena) {
        rows.take(arena, r.rows, r.room[0]);
        columns.take(arena, r.columns, r.room[1]);
        seen.take(arena, r.width);
    }
    void place(const Regions& r, int64_t box) {
        list_samples(r.rule, side_of(r, box, 0), rows);
        list_samples(r.rule, side_of(r, box, 1), columns);
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
struct Pick {
    using A = AccumulatorOf<S>;
    using C = Code<A>;
    MaxBox<A> box[kTogether];
    A *line, *held;
    C* codes;

    Pick(const Regions& r, Arena& arena) {
        for (int64_t i = 0; i < r.together; ++i) box[i].take(r, arena);
        line = take_lines<A>(arena, r.width);
        held = take_lines<A>(arena, held_rows(r) * r.columns);
        codes = arena.take<C>(held_rows(r) * r.columns * lanes<A>);
    }

    void run(const Regions& r) {
        constexpr int64_t L = lanes<A>;
        const int64_t at_once = held_rows(r);
        const auto place = [&](int64_t i, int64_t box) {
            this->box[i].place(r, box);
            this->box[i].seen.number(this->box[i].columns.shares, !r.channels_last);
        };
        each_box<A>(r, place, [&](int64_t i, int64_t box, int64_t channel) {
            const auto from = map_of<S>(r, box, channel);
            const auto to = result_of<S>(r, box, channel);
            for (int64_t begin = 0; begin < r.rows; begin += at_once) {
                const int64_t end = at_most(begin + at_once, r.rows);
                for (int64_t row = begin; row < end; ++row) {
                    const int64_t at = (row - begin) * r.columns * L;
                    pick_row(r, this->box[i], from, row, held + at, codes + at);
                }
                to.write(begin * r.columns, (end - begin) * r.columns, held);
                if (!r.codes) continue;
                const S* origin = static_cast<S*>(r.out);
                for (int64_t lane = 0; lane < to.valid; ++lane)
                    for (int64_t bin = 0; bin < (end - begin) * r.columns; ++bin)
                        put_code(r, to.element(lane, begin * r.columns + bin) - origin,
                                 codes[bin * L + lane]);
            }
        });
    }

    // One row of bins, in lanes.
    POOLKIT_INLINE void pick_row(const Regions& r, const MaxBox<A>& b,
                                 const Group<const S, A>& from, int64_t row, A* bests, C* codes) {
        constexpr int64_t L = lanes<A>;
        const Vec<C> nowhere = broadcast<C>(static_cast<C>(r.nowhere));
        for (int64_t bin = 0; bin < r.columns; ++bin) {
            store<A>(bests + bin * L, Vec<A>{});
            store<C>(codes + bin * L, nowhere);
        }
        if (b.seen.count == 0) return;
        for (int64_t i = 0; i < b.rows.count(row); ++i) {
            down<S, A>(from, r.width, b.rows.shares, b.rows.first[row] + i, b.seen, line);
            for (int64_t bin = 0; bin < r.columns; ++bin) {
                const int64_t n = b.columns.count(bin);
                if (n == 0) continue;
                Vec<A> best = load<A>(bests + bin * L);
                Vec<C> code = load<C>(codes + bin * L);
                for (int64_t j = 0; j < n; ++j) {
                    const Vec<A> v = along(b.columns.shares, b.columns.first[bin] + j, line);
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
                store<A>(bests + bin * L, best);
                store<C>(codes + bin * L, code);
            }
        }
        // The zeros outside come last, so that of equal values one on the map is taken.
        for (int64_t bin = 0; bin < r.columns; ++bin) {
            if (!b.rows.outside[row] && !b.columns.outside[bin]) continue;
            const Vec<A> best = load<A>(bests + bin * L);
            const auto taken = best < Vec<A>{};
            store<A>(bests + bin * L, taken ? Vec<A>{} : best);
            store<C>(codes + bin * L, taken ? nowhere : load<C>(codes + bin * L));
        }
    }
};

// Calls body(pixel, weight, weight) for the cells of the sample that a code names. One that is of
// other boxes, as someone has changed these since, may name none.
template <class A, class Body>
POOLKIT_INLINE void each_cell(const Regions& r, const MaxBox<A>& b, int64_t row, int64_t bin,
                              int64_t code, Body body) {
    const uint32_t n = static_cast<uint32_t>(b.columns.count(bin));
    if (code == r.nowhere || n == 0) return;
    const uint32_t number = static_cast<uint32_t>(code);
    if (number / n >= b.rows.count(row)) return;
    const int64_t down = b.rows.first[row] + number / n;
    const int64_t beside = b.columns.first[bin] + number % n;
    const Shares<A>&y = b.rows.shares, &x = b.columns.shares;
    for (int64_t i = y.start[down]; i < y.start[down + 1]; ++i)
        for (int64_t j = x.start[beside]; j < x.start[beside + 1]; ++j)
            body(y.at[i] * r.width + x.at[j], y.weight[i], x.weight[j]);
}

template <class S>
struct Scatter {
    using A = AccumulatorOf<S>;
    MaxBox<A> box;
    A* planes;

    Scatter(const Regions& r, Arena& arena) {
        box.take(r, arena);
        planes = take_planes<A>(r, arena);
    }

    void run(const Regions& r) {
        constexpr int64_t L = lanes<A>;
        const S* grads = static_cast<const S*>(r.grad);
        const auto place = [&](int64_t at) { box.place(r, at); };
        gather_planes<S>(r, planes, place, [&](int64_t at, int64_t channel, A* plane) {
            const auto grad = grad_of<S>(r, at, channel);
            for (int64_t lane = 0; lane < grad.valid; ++lane)
                for (int64_t row = 0; row < r.rows; ++row)
                    for (int64_t bin = 0; bin < r.columns; ++bin) {
                        const S* element = grad.element(lane, row * r.columns + bin);
                        const A share = static_cast<A>(widen(*element));
                        each_cell(r, box, row, bin, code_at(r, element - grads),
                                  [&](int64_t pixel, A down, A beside) {
                                      plane[pixel * L + lane] += down * (beside * share);
                                  });
                    }
        });
    }
};

// The adjoint: the values that the codes name.
template <class S>
struct Take {
    using A = AccumulatorOf<S>;
    MaxBox<A> box[kTogether];

    Take(const Regions& r, Arena& arena) {
        for (int64_t i = 0; i < r.together; ++i) box[i].take(r, arena);
    }

    void run(const Regions& r) {
        S* outs = static_cast<S*>(r.out);
        const auto place = [&](int64_t i, int64_t at) { box[i].place(r, at); };
        each_box<A>(r, place, [&](int64_t i, int64_t at, int64_t channel) {
            const auto from = map_of<S>(r, at, channel);
            const auto to = result_of<S>(r, at, channel);
            for (int64_t lane = 0; lane < to.valid; ++lane)
                for (int64_t row = 0; row < r.rows; ++row)
                    for (int64_t bin = 0; bin < r.columns; ++bin) {
                        S* element = to.element(lane, row * r.columns + bin);
                        A sum = 0;
                        each_cell(r, box[i], row, bin, code_at(r, element - outs),
                                  [&](int64_t pixel, A down, A beside) {
                                      const S* x = from.element(lane, pixel);
                                      sum += down * (beside * static_cast<A>(widen(*x)));
                                  });
                        *element = narrow<S>(sum);
                    }
        });
    }
};

// --- the gradient of an integral's limits --------------------------------------------------------

// A mean from a to b moves with its limits as the difference between itself and what lies at the
// limit. Writes (y1, x1, y2, x2) for each box, in cells.
template <class S>
struct Move : MeanScratch<AccumulatorOf<S>> {
    using A = AccumulatorOf<S>;
    static constexpr int64_t L = lanes<A>;
    Shares<A> row_edges, column_edges;
    A *above, *below;  // the interpolation along the edges of a row of bins: means of its columns

    Move(const Regions& r, Arena& arena) : MeanScratch<A>(r, arena) {
        row_edges.take(arena, r.rows + 1, 2 * (r.rows + 1));
        column_edges.take(arena, r.columns + 1, 2 * (r.columns + 1));
        above = take_lines<A>(arena, r.columns);
        below = take_lines<A>(arena, r.columns);
    }

    void run(const Regions& r) {
        double* out = static_cast<double*>(r.out);
        for (int64_t at = r.first; at < r.last; ++at) {
            const Side y = side_of(r, at, 0), x = side_of(r, at, 1);
            double moved[4] = {};
            if (y.extent > 0.0 && x.extent > 0.0) {
                place(r, y, x);
                for (int64_t channel = 0; channel < r.channels; channel += L)
                    add_channels(r, at, channel, moved);
                for (int limit = 0; limit < 4; ++limit) {
                    const Side& side = limit % 2 ? x : y;
                    moved[limit] *= static_cast<double>(side.bins) / side.extent;
                }
            }
            memcpy(out + 4 * at, moved, sizeof moved);
        }
    }

    // Means and edges name slots of the same columns: those that either sees.
    void place(const Regions& r, const Side& y, const Side& x) {
        MeanBox<A>& b = this->box[0];
        share_means(r.rule, y, b.rows);
        share_means(r.rule, x, b.columns);
        share_edges(y, row_edges);
        share_edges(x, column_edges);
        const int64_t n = b.columns.entries;
        for (int64_t k = 0; k < column_edges.entries; ++k) b.columns.put(column_edges.at[k], 0.0);
        b.seen.number(b.columns, !r.channels_last);
        for (int64_t k = 0; k < column_edges.entries; ++k) column_edges.at[k] = b.columns.at[n + k];
    }

    void add_channels(const Regions& r, int64_t at, int64_t channel, double (&moved)[4]) {
        const MeanBox<A>& b = this->box[0];
        const auto from = map_of<S>(r, at, channel);
        const auto grad = grad_of<S>(r, at, channel);
        const int64_t at_once = held_rows(r);
        A* line = this->line;
        const auto merge = [&](const Shares<A>& rows, int64_t list) {
            if (rows.count(list) && b.seen.count)
                down<S, A>(from, r.width, rows, list, b.seen, line);
            else
                memset(line, 0, b.seen.count * L * sizeof(A));
        };
        const auto merge_edge = [&](int64_t row, A* to) {
            merge(row_edges, row);
            for (int64_t bin = 0; bin < r.columns; ++bin)
                store<A>(to + bin * L, along(b.columns, bin, line));
        };
        Vec<A> sum[4] = {};
        merge_edge(0, below);
        for (int64_t row = 0; row < r.rows; ++row) {
            if (row % at_once == 0)
                grad.read(row * r.columns, at_most(at_once, r.rows - row) * r.columns, this->held);
            A* swapped = above;
            above = below;
            below = swapped;
            merge_edge(row + 1, below);
            merge(b.rows, row);
            const A top = fraction(row, r.rows), bottom = fraction(row + 1, r.rows);
            const A* shares = this->held + row % at_once * r.columns * L;
            Vec<A> at_left = along(column_edges, 0, line);
            for (int64_t bin = 0; bin < r.columns; ++bin) {
                const Vec<A> share = load<A>(shares + bin * L);
                const Vec<A> mean = along(b.columns, bin, line);
                const Vec<A> at_right = along(column_edges, bin + 1, line);
                const A left = fraction(bin, r.columns), right = fraction(bin + 1, r.columns);
                add_limits(share * (mean - load<A>(above + bin * L)),
                           share * (load<A>(below + bin * L) - mean), top, bottom, sum[0], sum[2]);
                add_limits(share * (mean - at_left), share * (at_right - mean), left, right, sum[1],
                           sum[3]);
                at_left = at_right;
            }
        }
        for (int limit = 0; limit < 4; ++limit)
            for (int64_t lane = 0; lane < grad.valid; ++lane)
                moved[limit] += static_cast<double>(sum[limit][lane]);
    }

    static POOLKIT_INLINE A fraction(int64_t bin, int64_t bins) {
        return static_cast<A>(static_cast<double>(bin) / static_cast<double>(bins));
    }
    // An edge at a fraction of the box moves with the box's limits by 1 - fraction and fraction.
    static POOLKIT_INLINE void add_limits(Vec<A> by_first, Vec<A> by_last, A first, A last,
                                          Vec<A>& begin, Vec<A>& end) {
        begin += by_first * broadcast<A>(A(1) - first) + by_last * broadcast<A>(A(1) - last);
        end += by_first * broadcast<A>(first) + by_last * broadcast<A>(last);
    }
};

// --- the table -----------------------------------------------------------------------------------

template <class Step>
int64_t scratch_bytes(const Regions& r) {
    Arena arena{nullptr};
    Step measured(r, arena);
    return arena.used;
}
template <class Step>
void run(const Regions& r) {
    Arena arena{static_cast<char*>(r.scratch)};
    Step(r, arena).run(r);
}
template <class Step>
constexpr poolkit::RegionKernels::Step step_of = {scratch_bytes<Step>, run<Step>};

template <class S>
constexpr poolkit::RegionKernels region_kernels(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype,
                lanes<AccumulatorOf<S>>,
                step_of<Average<S>>,
                step_of<Spread<S>>,
                step_of<Pick<S>>,
                step_of<Scatter<S>>,
                step_of<Take<S>>,
                step_of<Move<S>>};
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
