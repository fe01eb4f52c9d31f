// Pooling of bags: rows of a table, named by an index, weighted or not, to one row for each bag.
// Compiled once per instruction set with POOLKIT_ISA set to its name, like kernels.inc.cpp.
//
// No row is copied: a bag's rows are the lines that `across.h` merges and that `whole.h` looks
// through, read where they lie in the table. So a bag has the bits that the same rows would have
// if they lay behind each other.
#include "reductions.h"
#include "registry.def"
#include "whole.h"

namespace {

using poolkit::Bags;

// Rows lie anywhere, where no processor looks ahead: what this many entries further is read next is
// fetched. Bags lie behind each other, so that is the next bag's, too. Into the second cache, for
// which more lines may be on their way: 0.6 of the time that the first one takes.
constexpr int64_t kAhead = 32;

// The rows of one bag. `Short` rows are narrower than a vector; their other lanes are zeros.
template <class S, bool Weighted, bool Short>
struct BagLines {
    using A = Real<S>;
    const S* table;
    int64_t width;
    const int64_t* index;  // null: the rows lie behind each other
    const A* weight;
    int64_t rows;
    int64_t known;  // entries of the index from this bag on, of it and others

    POOLKIT_INLINE const S* operator[](int64_t i) const {
        return table + (index ? index[i] : i) * width;
    }
    template <class>
    POOLKIT_INLINE Vec<A> at(int64_t i, int64_t j) const {
        const S* row = (*this)[i] + j;
        if (index && i + kAhead < known)
            __builtin_prefetch(table + index[i + kAhead] * width + j, 0, 2);
        const Vec<A> v = Short ? load_first<A>(row, width, Vec<A>{}) : load<A>(row);
        return Weighted ? v * broadcast<A>(weight[i]) : v;
    }
};

// The same as a source of values (whole.h): weights say how often a value is seen.
template <class S, bool Weighted, bool Short>
struct BagSource {
    using A = Real<S>;
    using Value = A;
    const BagLines<S, false, Short>& lines;
    const A* weight;
    int64_t column;

    POOLKIT_INLINE int64_t count() const { return lines.rows; }
    POOLKIT_INLINE Vec<A> first() const { return lines.template at<A>(0, column); }
    template <class Body>
    POOLKIT_INLINE void each(Body body) const {
        for (int64_t i = 0; i < lines.rows; ++i) body(lines.template at<A>(i, column));
    }
    template <class F>
    POOLKIT_INLINE Vec<A> fold(F f) const {
        Vec<A> acc = first();
        each([&](Vec<A> x) { acc = f(acc, x); });
        return acc;
    }
    template <int K, class Terms>
    POOLKIT_INLINE void sum(Terms terms, Vec<A> (&total)[K]) const {
        Tree<Total<Vec<A>>> sums[K];
        for (int64_t i = 0; i < lines.rows; ++i) {
            Vec<A> t[K];
            terms(lines.template at<A>(i, column), t);
            for (int k = 0; k < K; ++k)
                sums[k].add(Weighted ? t[k] * broadcast<A>(weight[i]) : t[k]);
        }
        for (int k = 0; k < K; ++k) total[k] = sums[k].total().sum;
    }
};

// Calls body(lines, bag) for bags that have rows; the others become zeros.
template <class S, bool Weighted, bool Short, class Body>
POOLKIT_INLINE void each_bag(const Bags& b, Body body) {
    const S* table = static_cast<const S*>(b.table);
    using A = Real<S>;
    for (int64_t bag = b.first; bag < b.last; ++bag) {
        const int64_t begin = b.begin[bag], count = b.count[bag];
        if (count == 0) {
            memset(static_cast<S*>(b.out) + bag * b.width, 0, b.width * sizeof(S));
            if (b.codes) memset(b.codes + bag * b.width, 0, b.width * sizeof(int32_t));
            continue;
        }
        const A* weight = Weighted ? static_cast<const A*>(b.weights) + begin : nullptr;
        body(BagLines<S, Weighted, Short>{b.index ? table : table + begin * b.width, b.width,
                                          b.index ? b.index + begin : nullptr, weight, count,
                                          b.entries - begin},
             bag);
    }
}

// Calls body(constant U, column) so that U vectors from each column on make up a row. The last one
// may do some columns again.
template <class A, class Body>
POOLKIT_INLINE void each_column(int64_t width, Body body) {
    constexpr int64_t n = lanes<A>;
    int64_t j = 0;
    for (; j + 4 * n <= width; j += 4 * n) body(Constant<4>{}, j);
    for (; j + n <= width; j += n) body(Constant<1>{}, j);
    if (j < width) body(Constant<1>{}, width < n ? 0 : width - n);
}

// Sums, divided or not.
template <class S, bool Weighted, bool Short>
void add_rows(const Bags& b) {
    using A = Real<S>;
    S* out = static_cast<S*>(b.out);
    each_bag<S, Weighted, Short>(b, [&](const auto& lines, int64_t bag) {
        const Vec<A> divisor =
            broadcast<A>(b.divisors ? static_cast<const A*>(b.divisors)[bag] : A(1));
        each_column<A>(b.width, [&](auto u, int64_t column) {
            merge_columns<Sum, A, true, decltype(u)::value>(
                lines, lines.rows, column, 0.0, [&](int64_t j, Vec<A> v) {
                    if (b.divisors) v = v / divisor;
                    store_upto<A>(out + bag * b.width, j, b.width, Sum::finish(v, 0.0));
                });
        });
    });
}

// Maxima and minima, and which row of its bag each is from.
template <class R, class S, bool Weighted, bool Short>
void pick_rows(const Bags& b) {
    using A = Real<S>;
    using C = Code<A>;
    constexpr int64_t n = lanes<A>;
    S* out = static_cast<S*>(b.out);
    each_bag<S, Weighted, Short>(b, [&](const auto& lines, int64_t bag) {
        each_column<A>(b.width, [&](auto u, int64_t column) {
            constexpr int U = decltype(u)::value;
            Vec<A> best[U];
            Vec<C> code[U];
            for (int k = 0; k < U; ++k) {
                best[k] = lines.template at<A>(0, column + k * n);
                code[k] = Vec<C>{};
            }
            for (int64_t i = 1; i < lines.rows; ++i) {
#pragma GCC unroll 4
                for (int k = 0; k < U; ++k) {
                    const Vec<A> v = lines.template at<A>(i, column + k * n);
                    const auto taken = R::replaces(best[k], v);
                    best[k] = taken ? v : best[k];
                    if (b.codes) code[k] = taken ? broadcast<C>(static_cast<C>(i)) : code[k];
                }
            }
            for (int k = 0; k < U; ++k) {
                const int64_t j = column + k * n;
                store_upto<A>(out + bag * b.width, j, b.width, best[k]);
                if (!b.codes) continue;
                C codes[n];
                store<C>(codes, code[k]);
                for (int64_t i = 0; i < at_most(n, b.width - j); ++i)
                    b.codes[bag * b.width + j + i] = static_cast<int32_t>(codes[i]);
            }
        });
    });
}

// Means weighted by a softmax of the values themselves.
template <class S, bool Weighted, bool Short>
void soften_rows(const Bags& b) {
    using A = Real<S>;
    S* out = static_cast<S*>(b.out);
    const Numbers numbers{b.parameter, 0.0};
    each_bag<S, Weighted, Short>(b, [&](const auto& lines, int64_t bag) {
        const BagLines<S, false, Short> plain{lines.table, lines.width, lines.index,
                                              nullptr,     lines.rows,  lines.known};
        each_column<A>(b.width, [&](auto u, int64_t column) {
            for (int k = 0; k < decltype(u)::value; ++k) {
                const int64_t j = column + k * lanes<A>;
                const BagSource<S, Weighted, Short> source{plain, lines.weight, j};
                store_upto<A>(out + bag * b.width, j, b.width, Soft::reduce<A>(source, numbers));
            }
        });
    });
}

// For each row of a bag its inner product with a row of the bag's own, in lanes of 64 bytes on
// every machine: the gradient of a weight.
template <class S>
void multiply_rows(const Bags& b) {
    using A = Real<S>;
    constexpr int n = lanes<A>, wide = 64 / static_cast<int>(sizeof(A)), parts = wide / n;
    const S* table = static_cast<const S*>(b.table);
    const S* own = static_cast<const S*>(b.other);
    A* out = static_cast<A*>(b.out);
    for (int64_t bag = b.first; bag < b.last; ++bag) {
        const S* with = own + bag * b.width;
        for (int64_t e = b.begin[bag]; e < b.begin[bag] + b.count[bag]; ++e) {
            const S* row = table + (b.index ? b.index[e] : e) * b.width;
            Vec<A> acc[parts] = {};
            int64_t j = 0;
            for (; j + wide <= b.width; j += wide)
                for (int k = 0; k < parts; ++k)
                    acc[k] += load<A>(row + j + k * n) * load<A>(with + j + k * n);
            for (int k = 0; j < b.width && k < parts; ++k, j += n) {
                const int64_t left = b.width - j;
                acc[k] += left >= n ? load<A>(row + j) * load<A>(with + j)
                                    : load_first<A>(row + j, left, Vec<A>{}) *
                                          load_first<A>(with + j, left, Vec<A>{});
            }
            A lane[wide];
            for (int k = 0; k < parts; ++k) store<A>(lane + k * n, acc[k]);
            out[e] = WindowLine<A>::fold_lanes_of(lane, [](A x, A y) { return x + y; }) + A(0);
        }
    }
}

// The gradient of maxima, columns [first, last) of all bags: no two threads add to one place.
template <class A>
void scatter_rows(const Bags& b) {
    const A* grad = static_cast<const A*>(b.table);
    const A* weights = static_cast<const A*>(b.weights);
    A* out = static_cast<A*>(b.out);
    for (int64_t bag = 0; bag < b.bags; ++bag) {
        if (b.count[bag] == 0) continue;
        for (int64_t j = b.first; j < b.last; ++j) {
            const int64_t at = bag * b.width + j, e = b.begin[bag] + b.codes[at];
            const A share = weights ? grad[at] * weights[e] : grad[at];
            out[(b.index ? b.index[e] : e) * b.width + j] += share;
        }
    }
}

// As Weighted and Short say.
template <class S, template <class, bool, bool> class Run>
void chosen(const Bags& b) {
    const bool narrow = b.width < lanes<Real<S>>;
    if (b.weights)
        narrow ? Run<S, true, true>::run(b) : Run<S, true, false>::run(b);
    else
        narrow ? Run<S, false, true>::run(b) : Run<S, false, false>::run(b);
}
template <class S, bool Weighted, bool Short>
struct Added {
    static void run(const Bags& b) { add_rows<S, Weighted, Short>(b); }
};
template <class S, bool Weighted, bool Short>
struct Largest {
    static void run(const Bags& b) { pick_rows<Max, S, Weighted, Short>(b); }
};
template <class S, bool Weighted, bool Short>
struct Smallest {
    static void run(const Bags& b) { pick_rows<Min, S, Weighted, Short>(b); }
};
template <class S, bool Weighted, bool Short>
struct Softened {
    static void run(const Bags& b) { soften_rows<S, Weighted, Short>(b); }
};

template <class S>
constexpr poolkit::BagKernels bag_kernels(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype,
                chosen<S, Added>,
                chosen<S, Largest>,
                chosen<S, Smallest>,
                chosen<S, Softened>,
                multiply_rows<S>,
                same<S, Real<S>> ? scatter_rows<Real<S>> : nullptr};
    else
        return {};
}

#define POOLKIT_BAGS(UNUSED, DTYPE, S) bag_kernels<S>(#DTYPE),
constexpr poolkit::BagKernels kBagKernels[] = {POOLKIT_DTYPES(POOLKIT_BAGS, )};

#define POOLKIT_JOIN(a, b) a##b
#define POOLKIT_SYMBOL(isa) POOLKIT_JOIN(poolkit_bags_, isa)

}  // namespace

extern "C" const poolkit::BagTable POOLKIT_SYMBOL(POOLKIT_ISA);
extern "C" const poolkit::BagTable POOLKIT_SYMBOL(POOLKIT_ISA) = {
    kBagKernels, sizeof kBagKernels / sizeof kBagKernels[0]};
