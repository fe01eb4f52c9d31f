// Sorting networks: values of given ranks by exchanges that depend on the number of values alone,
// so that every lane takes the same steps. The network is Batcher's merge exchange for any number
// of values (Knuth, "The Art of Computer Programming", volume 3, 5.2.2, algorithm M), of which only
// what the wanted ranks depend on is kept where the number is known to the compiler: 22 exchanges,
// half of 8 of them, for the median of 9, and 113 for that of 25.
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

// A list of exchanges; of each, which of its two sides are used later.
template <int Most>
struct Exchanges {
    struct Exchange {
        int i, j;
        bool first, second;
    };
    Exchange steps[Most] = {};
    int size = 0;

    constexpr void add(int i, int j) { steps[size++] = {i, j, true, true}; }

    // Keeps what the wanted lines depend on.
    constexpr void prune(bool* wanted) {
        for (int k = size - 1; k >= 0; --k) {
            Exchange& step = steps[k];
            step.first = wanted[step.i];
            step.second = wanted[step.j];
            if (step.first || step.second) wanted[step.i] = wanted[step.j] = true;
        }
        int kept = 0;
        for (int k = 0; k < size; ++k)
            if (steps[k].first || steps[k].second) steps[kept++] = steps[k];
        size = kept;
    }
};

// The exchanges on which ranks Low to High of N values depend; they end in lines Low to High.
template <int N, int Low, int High>
constexpr auto ranks_of() {
    Exchanges<N * N> network;
    merge_exchange(N, [&](int i, int j) { network.add(i, j); });
    bool wanted[N] = {};
    for (int rank = Low; rank <= High; ++rank) wanted[rank] = true;
    network.prune(wanted);
    return network;
}
template <int N, int Low, int High>
struct Ranking {
    static constexpr auto network = ranks_of<N, Low, High>();
};

// Lines [0, N) and [N, 2 N) are in order: the exchanges that merge them, as far as ranks Low to
// High depend on them, and the lines in which those end. Odd and even lines are merged first, and
// then each with its neighbour (Batcher's odd-even merge; Knuth, 5.3.4).
template <int N, int Low, int High>
struct Merging {
    struct Merge {
        Exchanges<4 * N * N> network;
        int line[2 * N] = {};  // by rank

        constexpr void merge(const int* a, int m, const int* b, int n, int* out) {
            if (m == 0 || n == 0) {
                for (int i = 0; i < m; ++i) out[i] = a[i];
                for (int i = 0; i < n; ++i) out[i] = b[i];
                return;
            }
            if (m == 1 && n == 1) {
                network.add(a[0], b[0]);
                out[0] = a[0];
                out[1] = b[0];
                return;
            }
            int half_a[2][N] = {}, half_b[2][N] = {}, merged[2][2 * N] = {};
            for (int i = 0; i < m; ++i) half_a[i % 2][i / 2] = a[i];
            for (int i = 0; i < n; ++i) half_b[i % 2][i / 2] = b[i];
            const int evens = (m + 1) / 2 + (n + 1) / 2, odds = m / 2 + n / 2;
            merge(half_a[0], (m + 1) / 2, half_b[0], (n + 1) / 2, merged[0]);
            merge(half_a[1], m / 2, half_b[1], n / 2, merged[1]);
            int next = 0;
            out[next++] = merged[0][0];
            for (int i = 0; i < odds || i + 1 < evens; ++i) {
                if (i < odds && i + 1 < evens) network.add(merged[1][i], merged[0][i + 1]);
                if (i < odds) out[next++] = merged[1][i];
                if (i + 1 < evens) out[next++] = merged[0][i + 1];
            }
        }
        constexpr Merge() {
            int a[N] = {}, b[N] = {};
            for (int i = 0; i < N; ++i) a[i] = i, b[i] = N + i;
            merge(a, N, b, N, line);
            bool wanted[2 * N] = {};
            for (int rank = Low; rank <= High; ++rank) wanted[line[rank]] = true;
            network.prune(wanted);
        }
    };
    static constexpr Merge made{};
    static constexpr auto network = made.network;
};

template <class N, int K, class V>
POOLKIT_INLINE void exchange_step(V* v) {
    constexpr auto step = N::network.steps[K];
    const V a = v[step.i], b = v[step.j];
    if constexpr (step.first) v[step.i] = smaller(a, b);
    if constexpr (step.second) v[step.j] = larger(a, b);
}
template <class N, class V, int... K>
POOLKIT_INLINE void exchange_steps(V* v, Sequence<K...>) {
    (exchange_step<N, K>(v), ...);
}
// All exchanges of a network, in registers.
template <class N, class V>
POOLKIT_INLINE void exchange_all(V* v) {
    exchange_steps<N>(v, Upto<N::network.size>{});
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
