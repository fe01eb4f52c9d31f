// Sorting networks: values of given ranks by exchanges that depend on the number of values alone,
// so that every lane takes the same steps. The network is Batcher's merge exchange for any number
// of values (Knuth, "The Art of Computer Programming", volume 3, 5.2.2, algorithm M), of which only
// what the wanted ranks depend on is kept where the number is known to the compiler: 20 exchanges
// and halves of exchanges for the median of 9, and 113 for that of 25.
#pragma once

#include "loops.h"

namespace {

// Windows of up to this many values are sorted.
constexpr int64_t kSorted = 64;

// The two ranks, from 0, between which the result lies, and the share of the second one.
struct Ranks {
    int64_t low, high;
    double weight;
};

template <class V>
POOLKIT_INLINE V smaller(V a, V b) {
    return (b < a) ? b : a;
}
template <class V>
POOLKIT_INLINE V larger(V a, V b) {
    return (b > a) ? b : a;
}

// Calls exchange(i, j), i < j, in order.
template <class Exchange>
constexpr void merge_exchange(int n, Exchange exchange) {
    int top = 1;
    while (2 * top < n) top *= 2;
    for (int p = top; p > 0; p /= 2) {
        int distance = p, r = 0;
        for (int q = top;; q /= 2) {
            for (int i = 0; i + distance < n; ++i)
                if ((i & p) == r) exchange(i, i + distance);
            if (q == p) break;
            distance = q - p;
            r = p;
        }
    }
}

// The exchanges on which ranks Low to High of N values depend, and which of their two sides do.
template <int N, int Low, int High>
struct Network {
    struct Exchange {
        int i, j;
        bool first, second;
    };
    Exchange steps[N * N] = {};
    int size = 0;

    constexpr Network() {
        Exchange all[N * N] = {};
        int n = 0;
        merge_exchange(N, [&](int i, int j) { all[n++] = {i, j, true, true}; });
        bool needed[N] = {};
        for (int rank = Low; rank <= High; ++rank) needed[rank] = true;
        int kept = 0;
        for (int k = n - 1; k >= 0; --k) {
            Exchange& step = all[k];
            step.first = needed[step.i];
            step.second = needed[step.j];
            if (step.first || step.second) needed[step.i] = needed[step.j] = true, ++kept;
        }
        for (int k = 0; k < n; ++k)
            if (all[k].first || all[k].second) steps[size++] = all[k];
    }
};

template <int N, int Low, int High>
constexpr Network<N, Low, High> kNetwork{};

template <int N, int Low, int High, int K, class V>
POOLKIT_INLINE void exchange_step(V* v) {
    constexpr auto step = kNetwork<N, Low, High>.steps[K];
    const V a = v[step.i], b = v[step.j];
    if constexpr (step.first) v[step.i] = smaller(a, b);
    if constexpr (step.second) v[step.j] = larger(a, b);
}
template <int N, int Low, int High, class V, int... K>
POOLKIT_INLINE void exchange_all(V* v, Sequence<K...>) {
    (exchange_step<N, Low, High, K>(v), ...);
}

// Sorts v[0] to v[n - 1].
template <class V>
POOLKIT_ONCE void sort_lanes(V* v, int64_t n) {
    merge_exchange(static_cast<int>(n), [&](int i, int j) {
        const V a = v[i], b = v[j];
        v[i] = smaller(a, b);
        v[j] = larger(a, b);
    });
}

}  // namespace
