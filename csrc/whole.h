// Reductions that need all values of a window: each is written once, over a `Source` that gives a
// vector whose lanes are windows of their own (WindowLanes), or one window (WindowLine).
#pragma once

#include "across.h"
#include "networks.h"
#include "powers.h"

namespace {

// What up to a vector of neighbouring windows see: value (r, t) of lane j is rows[r][offset[t] +
// j].
template <class L>
struct Taps {
    const L* const* rows;
    int64_t row_count;
    const int64_t* offset;
    int64_t taps;
    POOLKIT_INLINE int64_t count() const { return row_count * taps; }
};

// What is put together in a fixed order: chains of kChain values, joined as a tree. A part begins
// as `Part{}`; `add` puts a value to it, and `after` joins it to what came before.
template <class Part>
struct Tree {
    Part chain{};
    int64_t length = 0, chains = 0;
    Part level[40];

    // Any more arguments are those of the part's own `add`.
    template <class V, class... More>
    POOLKIT_INLINE void add(V v, More... more) {
        chain.add(v, more...);
        if (++length == kChain) close();
    }
    POOLKIT_ONCE void close() {
        Part part = chain;
        int i = 0;
        for (int64_t carried = chains++; carried & 1; carried >>= 1) part = part.after(level[i++]);
        level[i] = part;
        chain = Part{};
        length = 0;
    }
    POOLKIT_INLINE Part total() const {
        Part part = chain;
        bool begun = length > 0;
        int i = 0;
        for (int64_t rest = chains; rest; rest >>= 1, ++i)
            if (rest & 1) {
                part = begun ? part.after(level[i]) : level[i];
                begun = true;
            }
        return part;
    }
};

template <class V>
struct Total {
    V sum;
    POOLKIT_INLINE void add(V v) { sum += v; }
    POOLKIT_INLINE Total after(const Total& before) const { return {before.sum + sum}; }
};
template <class V>
struct TreeSum : Tree<Total<V>> {
    POOLKIT_INLINE V total() const { return Tree<Total<V>>::total().sum; }
};

// The sum of the values, and that of the products of all pairs of them. An infinity counts as a
// NaN, as times 0 it would be one.
template <class A>
struct Pairs {
    Vec<A> sum, pairs;
    POOLKIT_INLINE void add(Vec<A> x) {
        pairs += (x - x) + sum * x;
        sum += x;
    }
    // The first n lanes are values. The others are 0, and add nothing, not even to a sum that
    // overflowed.
    POOLKIT_INLINE void add(Vec<A> x, int n) {
        const Vec<A> before = pairs;
        add(x);
        A lane[lanes<A>];
        store<A>(lane, pairs);
        pairs = load_first<A>(lane, n, before);
    }
    POOLKIT_INLINE Pairs after(const Pairs& before) const {
        return {before.sum + sum, (before.pairs + pairs) + before.sum * sum};
    }
};

// Lane j is the window that begins at column j.
template <class A, class L>
struct WindowLanes {
    using Value = A;
    const Taps<L>& window;
    int64_t column;

    POOLKIT_INLINE int64_t count() const { return window.count(); }
    template <class Body>
    POOLKIT_INLINE void each(Body body) const {
        for (int64_t r = 0; r < window.row_count; ++r) {
            const L* row = window.rows[r] + column;
            for (int64_t t = 0; t < window.taps; ++t) body(load<A>(row + window.offset[t]));
        }
    }
    POOLKIT_INLINE Vec<A> first() const {
        return load<A>(window.rows[0] + window.offset[0] + column);
    }
    // f(f(x0, x1), x2), ...
    template <class F>
    POOLKIT_INLINE Vec<A> fold(F f) const {
        Vec<A> acc = first();
        each([&](Vec<A> x) { acc = f(acc, x); });
        return acc;
    }
    // Sums of the K terms that terms(x, t) makes of each value.
    template <int K, class Terms>
    POOLKIT_INLINE void sum(Terms terms, Vec<A> (&total)[K]) const {
        if (count() < kChain) {  // the same without counting
            for (int k = 0; k < K; ++k) total[k] = Vec<A>{};
            each([&](Vec<A> x) {
                Vec<A> t[K];
                terms(x, t);
                for (int k = 0; k < K; ++k) total[k] += t[k];
            });
            return;
        }
        TreeSum<Vec<A>> sums[K];
        each([&](Vec<A> x) {
            Vec<A> t[K];
            terms(x, t);
            for (int k = 0; k < K; ++k) sums[k].add(t[k]);
        });
        for (int k = 0; k < K; ++k) total[k] = sums[k].total();
    }
    // The products of all pairs.
    POOLKIT_INLINE Vec<A> pairs() const {
        if (count() < kChain) {
            Pairs<A> part{};
            each([&](Vec<A> x) { part.add(x); });
            return part.pairs;
        }
        Tree<Pairs<A>> tree;
        each([&](Vec<A> x) { tree.add(x); });
        return tree.total().pairs;
    }
    POOLKIT_INLINE bool has_nan() const {
        Watch<A> watch;
        each([&](Vec<A> x) { watch.nan(x, x); });
        return watch.found();
    }
    // How many values pass the test.
    template <class Test>
    POOLKIT_INLINE Vec<Code<A>> how_many(Test test) const {
        Vec<Code<A>> n{};
        each([&](Vec<A> x) { n -= (Vec<Code<A>>)test(x); });  // true is -1
        return n;
    }
};

// n contiguous values are the one window, which all lanes of what is given stand for. They are
// taken in lanes of 64 bytes, whatever the machine's vector is.
template <class A>
struct WindowLine {
    using Value = A;
    static constexpr int width = lanes<A>, wide = 64 / static_cast<int>(sizeof(A));
    const A* values;
    int64_t n;

    POOLKIT_INLINE int64_t count() const { return n; }
    POOLKIT_INLINE Vec<A> first() const { return broadcast<A>(values[0]); }
    // Calls body(part of the 64 bytes, values, how many of them are values).
    template <class Body>
    POOLKIT_INLINE void each(Body body) const {
        int part = 0;
        int64_t i = 0;
        for (; i + width <= n; i += width) {
            body(part, load<A>(values + i), width);
            part = (part + 1) & (wide / width - 1);
        }
        if (i < n) body(part, load_first<A>(values + i, n - i, first()), static_cast<int>(n - i));
    }
    template <class T, class F>
    static POOLKIT_INLINE T fold_lanes_of(T* lane, F f) {
        for (int half = wide / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) lane[i] = f(lane[i], lane[i + half]);
        return lane[0];
    }
    template <class F>
    POOLKIT_INLINE Vec<A> fold(F f) const {
        Vec<A> acc[wide / width];
        for (auto& part : acc) part = first();
        each([&](int part, Vec<A> x, int) { acc[part] = f(acc[part], x); });
        for (int half = wide / width / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) acc[i] = f(acc[i], acc[i + half]);
        A lane[2 * width] = {};
        for (int half = width / 2; half > 0; half /= 2) {
            store<A>(lane, acc[0]);
            acc[0] = f(acc[0], load<A>(lane + half));
        }
        return broadcast<A>(acc[0][0]);
    }
    template <int K, class Terms>
    POOLKIT_INLINE void sum(Terms terms, Vec<A> (&total)[K]) const {
        TreeSum<Vec<A>> sums[wide / width][K];
        each([&](int part, Vec<A> x, int left) {
            Vec<A> t[K];
            terms(x, t);
            for (int k = 0; k < K; ++k) {
                if (left < width) {
                    A lane[width];
                    store<A>(lane, t[k]);
                    t[k] = load_first<A>(lane, left, Vec<A>{});
                }
                sums[part][k].add(t[k]);
            }
        });
        for (int k = 0; k < K; ++k) {
            A lane[wide];
            for (int part = 0; part < wide / width; ++part)
                store<A>(lane + part * width, sums[part][k].total());
            total[k] = broadcast<A>(fold_lanes_of(lane, [](A a, A b) { return a + b; }));
        }
    }
    POOLKIT_INLINE Vec<A> pairs() const {
        Tree<Pairs<A>> trees[wide / width];
        Pairs<A> last[wide / width];
        each([&](int part, Vec<A> x, int left) {
            if (left < width)
                trees[part].add(load_first<A>(values + n - left, left, Vec<A>{}), left);
            else
                trees[part].add(x);
        });
        for (int part = 0; part < wide / width; ++part) last[part] = trees[part].total();
        for (int half = wide / width / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) last[i] = last[i + half].after(last[i]);
        A lane[2][2 * width] = {};
        for (int half = width / 2; half > 0; half /= 2) {
            store<A>(lane[0], last[0].sum);
            store<A>(lane[1], last[0].pairs);
            const Pairs<A> behind{load<A>(lane[0] + half), load<A>(lane[1] + half)};
            last[0] = behind.after(last[0]);
        }
        return broadcast<A>(last[0].pairs[0]);
    }
    POOLKIT_INLINE bool has_nan() const {
        Watch<A> watch;
        each([&](int, Vec<A> x, int) { watch.nan(x, x); });
        return watch.found();
    }
    template <class Test>
    POOLKIT_INLINE Vec<Code<A>> how_many(Test test) const {
        Vec<Code<A>> passed{};
        each([&](int, Vec<A> x, int left) {
            Vec<Code<A>> one = -(Vec<Code<A>>)test(x);
            if (left < width) {
                Code<A> lane[width];
                store<Code<A>>(lane, one);
                one = load_first<Code<A>>(lane, left, Vec<Code<A>>{});
            }
            passed += one;
        });
        Code<A> lane[width], total = 0;
        store<Code<A>>(lane, passed);
        for (Code<A> one : lane) total += one;
        return broadcast<Code<A>>(total);
    }
};

// A float, or a double for doubles.
template <class S>
using Real = typename Choose<same<S, double>, double, float>::type;

// The parameters of a reduction.
struct Numbers {
    double first, second;
};

// What a window that sees nothing gives, unless a reduction says otherwise.
struct NanOfNothing {
    template <class F>
    static constexpr F nothing = static_cast<F>(__builtin_nan(""));
};

// A reduction of floats, of which only `reduce` remains to be written. A NaN must propagate.
template <class R>
struct Smooth : NanOfNothing {
    static constexpr bool medians = false;
    static constexpr int together = 1;
    template <class S>
    static constexpr bool accepts = is_float<S>;
    template <class S>
    using Accumulator = Real<S>;
    template <class A, class L>
    static POOLKIT_ONCE void lanes_of(const Taps<L>& window, int64_t column, const Numbers& p,
                                      A* to) {
        store<A>(to, R::template reduce<A>(WindowLanes<A, L>{window, column}, p));
    }
    template <class A, class W>
    static POOLKIT_ONCE A line(const W* values, int64_t n, const Numbers& p) {
        return R::template reduce<A>(WindowLine<A>{values, n}, p)[0];
    }
};

// The deviations from the first value are near enough to add up without cancelling; a second pass
// takes those from the mean, and what their sum is off zero (Chan, Golub and LeVeque, "Algorithms
// for computing the sample variance", 1983).
struct Std : Smooth<Std> {
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> reduce(const Source& source, const Numbers& p) {
        const A n = static_cast<A>(source.count()), freedom = n - static_cast<A>(p.first);
        if (!(freedom > A(0))) return broadcast<A>(static_cast<A>(__builtin_nan("")));
        const Vec<A> shift = source.first(), all = broadcast<A>(n);
        Vec<A> sum[1], moments[2];
        source.template sum<1>([&](Vec<A> x, Vec<A>* t) { t[0] = x - shift; }, sum);
        const Vec<A> mean = sum[0] / all;
        source.template sum<2>(
            [&](Vec<A> x, Vec<A>* t) {
                t[0] = (x - shift) - mean;
                t[1] = t[0] * t[0];
            },
            moments);
        Vec<A> squares = moments[1] - moments[0] * moments[0] / all;
        squares = (squares < Vec<A>{}) ? Vec<A>{} : squares;
        return square_root<A>(squares / broadcast<A>(freedom));
    }
};

// In one pass: each value times the sum of those before it. (Σx)² - Σx², halved, would cancel.
// It is so little work that memory decides: four vectors of windows are taken together, so that
// lines of channels are read as they lie (2.6 times as fast as one by one, for 26 lines of 64).
struct BiInteraction : Smooth<BiInteraction> {
    static constexpr int together = 4;
    template <class F>
    static constexpr F nothing = F(0);
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> reduce(const Source& source, const Numbers&) {
        return source.pairs();
    }
    template <class A, class L>
    static POOLKIT_ONCE void several_lanes_of(const Taps<L>& window, int64_t column, const Numbers&,
                                              A* to) {
        const auto put = [&](const auto& part) {
            for (int k = 0; k < together; ++k) store<A>(to + k * lanes<A>, part.of[k].pairs);
        };
        const auto each = [&](auto add) {
            for (int64_t r = 0; r < window.row_count; ++r)
                for (int64_t t = 0; t < window.taps; ++t)
                    add(window.rows[r] + window.offset[t] + column);
        };
        if (window.count() < kChain) {
            Several<A> part{};
            each([&](const L* x) { part.add(x); });
            put(part);
        } else {
            Tree<Several<A>> tree;
            each([&](const L* x) { tree.add(x); });
            put(tree.total());
        }
    }

  private:
    template <class A>
    struct Several {
        Pairs<A> of[together];
        template <class L>
        POOLKIT_INLINE void add(const L* x) {
            for (int k = 0; k < together; ++k) of[k].add(load<A>(x + k * lanes<A>));
        }
        POOLKIT_INLINE Several after(const Several& before) const {
            Several all;
            for (int k = 0; k < together; ++k) all.of[k] = of[k].after(before.of[k]);
            return all;
        }
    };
};

// Where the largest value is infinite it is not subtracted: the exponentials are then 0 or
// infinity.
template <class A>
POOLKIT_INLINE Vec<A> finite_or_zero(Vec<A> x) {
    return (x - x == Vec<A>{}) ? x : Vec<A>{};
}

struct LogSumExp : Smooth<LogSumExp> {
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> reduce(const Source& source, const Numbers& p) {
        const Vec<A> sharpness = broadcast<A>(static_cast<A>(p.first));
        const Vec<A> top = source.fold([](Vec<A> a, Vec<A> b) { return larger(a, b); });
        const Vec<A> shift = finite_or_zero<A>(top);
        Vec<A> sum[1];
        source.template sum<1>(
            [&](Vec<A> x, Vec<A>* t) { t[0] = exponential((x - shift) * sharpness); }, sum);
        const Vec<A> n = broadcast<A>(static_cast<A>(source.count()));
        return top + logarithm(sum[0] / n) / sharpness;
    }
};

struct Soft : Smooth<Soft> {
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> reduce(const Source& source, const Numbers& p) {
        const Vec<A> sharpness = broadcast<A>(static_cast<A>(p.first));
        const Vec<A> top = source.fold([](Vec<A> a, Vec<A> b) { return larger(a, b); });
        const Vec<A> shift = finite_or_zero<A>(top);
        Vec<A> sums[2];
        source.template sum<2>(
            [&](Vec<A> x, Vec<A>* t) {
                const Vec<A> apart = x - shift;
                t[0] = exponential(apart * sharpness);
                t[1] = (t[0] == Vec<A>{}) ? t[0] : t[0] * apart;
            },
            sums);
        const Vec<A> mean = top + sums[1] / sums[0];
        return ((top == shift) | (sums[0] != sums[0])) ? mean : top;
    }
};

struct GeneralMean : Smooth<GeneralMean> {
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> reduce(const Source& source, const Numbers& p) {
        const double exponent = p.first;
        const Vec<A> least = broadcast<A>(static_cast<A>(p.second));
        Vec<A> sum[1];
        const auto powers = [&](auto power_of) {
            source.template sum<1>(
                [&](Vec<A> x, Vec<A>* t) { t[0] = power_of((x < least) ? least : x); }, sum);
        };
        if (exponent == 1)
            powers([](Vec<A> x) { return x; });
        else if (exponent == 2)
            powers([](Vec<A> x) { return x * x; });
        else if (exponent == 3)
            powers([](Vec<A> x) { return x * x * x; });
        else
            powers([&](Vec<A> x) { return power(x, exponent); });
        const Vec<A> mean = sum[0] / broadcast<A>(static_cast<A>(source.count()));
        if (exponent == 1) return mean;
        if (exponent == 2) return square_root<A>(mean);
        return root_of<A>(mean, exponent);
    }
};

// --- by rank ------------------------------------------------------------------------------------

// What values of storage S are compared as when each lane counts: lanes of 4 bytes or more.
template <class S>
struct Countable {
    using type = Real<S>;
};
template <>
struct Countable<int8_t> {
    using type = int32_t;
};
template <>
struct Countable<uint8_t> : Countable<int8_t> {};
template <>
struct Countable<int16_t> : Countable<int8_t> {};
template <>
struct Countable<int32_t> : Countable<int8_t> {};
template <>
struct Countable<int64_t> {
    using type = int64_t;
};

// Integers in the order of the numbers, and back: those of negative floats run the other way.
template <class W>
POOLKIT_INLINE auto key_of(Vec<W> x) {
    if constexpr (is_float<W>) {
        using I = typename Choose<same<W, double>, int64_t, int32_t>::type;
        const Vec<I> bits = (Vec<I>)x;
        return (bits < Vec<I>{}) ? bits ^ broadcast<I>(highest_of<I>()) : bits;
    } else {
        return x;
    }
}

// The values of ranks `rank` (from 0) and, if `next` is wanted, rank + 1, by bisection: as many
// passes over the window as the values have bits at most, and no memory.
template <class W, class Source>
POOLKIT_INLINE void select_by_bisection(const Source& source, int64_t rank, Vec<W>& at,
                                        Vec<W>* next) {
    using I = typename Choose<sizeof(W) == 8, int64_t, int32_t>::type;
    using U = Code<W>;
    auto low = key_of<W>(source.fold([](Vec<W> a, Vec<W> b) { return smaller(a, b); }));
    auto high = key_of<W>(source.fold([](Vec<W> a, Vec<W> b) { return larger(a, b); }));
    const Vec<U> wanted = broadcast<U>(static_cast<U>(rank));
    while (any(low < high)) {
        const Vec<I> middle = low + (Vec<I>)(((Vec<U>)high - (Vec<U>)low) >> 1);
        const Vec<W> pivot = (Vec<W>)key_of<W>((Vec<W>)middle);
        const Vec<U> below = source.how_many([&](Vec<W> x) { return x <= pivot; });
        const auto enough = below > wanted;
        const auto open = low < high;
        high = (open & (decltype(open))enough) ? middle : high;
        low = (open & ~(decltype(open))enough) ? middle + 1 : low;
    }
    at = (Vec<W>)key_of<W>((Vec<W>)low);
    if (!next) return;
    const Vec<U> upto = source.how_many([&](Vec<W> x) { return x <= at; });
    const Vec<W> most = broadcast<W>(highest_of<W>());
    const Vec<W> above = source.fold([&](Vec<W> a, Vec<W> b) {
        a = (a > at) ? a : most;
        b = (b > at) ? b : most;
        return smaller(a, b);
    });
    *next = (upto > wanted + 1) ? at : above;
}

// Lanes of A as floats.
template <class F, class A>
POOLKIT_INLINE void store_real(F* to, Vec<A> v) {
    if constexpr (same<A, F>) {
        store<F>(to, v);
    } else {
        A lane[lanes<A>];
        store<A>(lane, v);
        for (int i = 0; i < lanes<A>; ++i) to[i] = static_cast<F>(lane[i]);
    }
}

// Lanes in which a value is a NaN.
template <class A, class Source>
POOLKIT_INLINE auto broken_lanes(const Source& source) {
    return source.how_many([](Vec<A> x) { return x != x; }) > Vec<Code<A>>{};
}

// Rows x Columns values whose middle one is wanted, in registers.
template <class A, int Rows, int Columns, class L, int... I>
POOLKIT_INLINE void median_of(const Taps<L>& window, int64_t column, Vec<A>& low_value,
                              Vec<A>& high_value, bool& found, Sequence<I...>) {
    constexpr int n = Rows * Columns, low = (n - 1) / 2, high = n / 2;
    Vec<A> v[n] = {load<A>(window.rows[I / Columns] + window.offset[I % Columns] + column)...};
    if constexpr (is_float<A>) {
        Watch<A> watch;
        (watch.nan(v[I], v[I]), ...);
        found = watch.found();
    }
    exchange_all<Ranking<n, low, high>>(v);
    low_value = v[low];
    high_value = v[high];
}

template <class R>
struct Ranked : NanOfNothing {
    static constexpr int together = 1;
    template <class S>
    using Accumulator = typename Countable<S>::type;

    template <class F, class L>
    static POOLKIT_ONCE void lanes_of(const Taps<L>& window, int64_t column, const Numbers& p,
                                      F* to) {
        using A = typename OrderedAccumulator<L>::type;
        using W = typename Countable<L>::type;
        const int64_t n = window.count();
        const Ranks ranks = R::ranks(n, p);
        const WindowLanes<A, L> source{window, column};
        if (n > kSorted) {
            for (int i = 0; i < lanes<A>; i += lanes<W>)
                bisect<W, F>(WindowLanes<W, L>{window, column + i}, ranks, to + i);
            return;
        }
        bool found = false, done = false;
        Vec<A> low, high;
        if (R::medians && ranks.low == (n - 1) / 2 && ranks.high == n / 2) {
            const auto middle = [&](auto rows, auto columns) {
                constexpr int r = decltype(rows)::value, c = decltype(columns)::value;
                if (done || window.row_count != r || window.taps != c) return;
                median_of<A, r, c>(window, column, low, high, found, Upto<r * c>{});
                done = true;
            };
            middle(Known<3>{}, Known<3>{});
            middle(Known<5>{}, Known<5>{});
            middle(Known<2>{}, Known<2>{});
            middle(Known<1>{}, Known<3>{});
            middle(Known<1>{}, Known<5>{});
        }
        if (!done) {
            Vec<A> v[kSorted];
            int64_t i = 0;
            Watch<A> watch;
            source.each([&](Vec<A> x) {
                v[i++] = x;
                watch.nan(x, x);
            });
            found = watch.found();
            sort_lanes(v, n);
            low = v[ranks.low];
            high = v[ranks.high];
        }
        finish<A, F>(source, low, high, ranks, found, to);
    }
    template <class F, class W>
    static POOLKIT_ONCE F line(const W* values, int64_t n, const Numbers& p) {
        F to[lanes<W>];
        bisect<W, F>(WindowLine<W>{values, n}, R::ranks(n, p), to);
        return to[0];
    }

  private:
    template <class W, class F, class Source>
    static POOLKIT_INLINE void bisect(const Source& source, const Ranks& ranks, F* to) {
        Vec<W> low, high;
        const bool two = ranks.high > ranks.low;
        select_by_bisection<W>(source, ranks.low, low, two ? &high : nullptr);
        if (!two) high = low;
        finish<W, F>(source, low, high, ranks, is_float<W> && source.has_nan(), to);
    }

    template <class A, class F, class Source>
    static POOLKIT_INLINE void finish(const Source& source, Vec<A> low, Vec<A> high,
                                      const Ranks& ranks, bool found, F* to) {
        if constexpr (same<A, F>) {
            Vec<A> result = R::template result<A>(source, low, high, ranks);
            if (found) {
                const Vec<A> nan = broadcast<A>(static_cast<A>(__builtin_nan("")));
                result = broken_lanes<A>(source) ? nan : result;
            }
            store<A>(to, result);
        } else {
            store_real<F, A>(to, low);
            if (ranks.high == ranks.low) return;
            F above[lanes<A>];
            store_real<F, A>(above, high);
            constexpr int step = at_most(lanes<A>, lanes<F>);
            for (int i = 0; i < lanes<A>; i += step) {
                F a[lanes<F>] = {}, b[lanes<F>] = {};
                memcpy(a, to + i, step * sizeof(F));
                memcpy(b, above + i, step * sizeof(F));
                store<F>(a, between<F>(load<F>(a), load<F>(b), ranks.weight));
                memcpy(to + i, a, step * sizeof(F));
            }
        }
    }

  protected:
    template <int N>
    struct Known {
        static constexpr int value = N;
    };

    // Values so far apart that their distance overflows, and infinities, are weighted instead.
    template <class F>
    static POOLKIT_INLINE Vec<F> between(Vec<F> a, Vec<F> b, double weight) {
        const Vec<F> w = broadcast<F>(static_cast<F>(weight)), apart = b - a;
        const Vec<F> weighted = a * (broadcast<F>(F(1)) - w) + b * w;
        const Vec<F> mixed = (apart - apart == Vec<F>{}) ? a + apart * w : weighted;
        return (a == b) ? a : mixed;
    }
};

struct Quantile : Ranked<Quantile> {
    static constexpr bool medians = true;
    template <class S>
    static constexpr bool accepts = true;
    static POOLKIT_INLINE Ranks ranks(int64_t n, const Numbers& p) {
        const double rank = static_cast<double>(n - 1) * p.first;
        const int64_t low = static_cast<int64_t>(rank);
        const double weight = rank - static_cast<double>(low);
        return {low, weight > 0 ? low + 1 : low, weight};
    }
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> result(const Source&, Vec<A> low, Vec<A> high,
                                        const Ranks& ranks) {
        const Vec<A> value = ranks.high > ranks.low ? between<A>(low, high, ranks.weight) : low;
        return value + Vec<A>{};  // of zeros that are equal, the positive one
    }
};

struct TopK : Ranked<TopK> {
    static constexpr bool medians = false;
    template <class S>
    static constexpr bool accepts = is_float<S>;
    static POOLKIT_INLINE Ranks ranks(int64_t n, const Numbers& p) {
        const int64_t k = at_most(static_cast<int64_t>(p.first), n);
        return {n - k, n - k, static_cast<double>(k)};
    }
    // Those above the smallest of the k, and it as often as is left to k.
    template <class A, class Source>
    static POOLKIT_INLINE Vec<A> result(const Source& source, Vec<A> least, Vec<A>,
                                        const Ranks& ranks) {
        Vec<A> sums[2];
        source.template sum<2>(
            [&](Vec<A> x, Vec<A>* t) {
                const auto above = x > least;
                t[0] = above ? x : Vec<A>{};
                t[1] = above ? broadcast<A>(A(1)) : Vec<A>{};
            },
            sums);
        const Vec<A> k = broadcast<A>(static_cast<A>(ranks.weight));
        return (sums[0] + (k - sums[1]) * least) / k;
    }
};

}  // namespace
