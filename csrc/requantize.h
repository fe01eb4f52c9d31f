// From sums of quantized values to quantized means, correctly rounded.
//
// A result is `zero point + round(sum * scale / (divisor * out_scale))`, clamped to its type, and
// is that of the exact real number: a float32 product decides all but the values so close to where
// the rounding turns that its error could show (about 1 in 10,000), and those are decided by whole
// numbers. So every instruction set gives the same, and no float64 is needed for lanes.
#pragma once

#include "loops.h"

namespace {

using poolkit::Requantization;
using poolkit::Rounding;

// What the kernels of other reductions have in place of a Requantizer.
struct Nothing {
    explicit Nothing(const Geometry&) {}
};

POOLKIT_INLINE int bit_length(unsigned __int128 x) {
    const uint64_t high = static_cast<uint64_t>(x >> 64), low = static_cast<uint64_t>(x);
    if (high) return 128 - __builtin_clzll(high);
    return low ? 64 - __builtin_clzll(low) : 0;
}

// The sign of a * 2^shift - b.
POOLKIT_INLINE int compare(unsigned __int128 a, int shift, unsigned __int128 b) {
    const int length_a = bit_length(a), length_b = bit_length(b);
    if (length_a == 0 || length_b == 0) return (length_a > 0) - (length_b > 0);
    if (length_a + shift != length_b) return length_a + shift < length_b ? -1 : 1;
    if (shift >= 0)  // as long as the other, so it fits
        a <<= shift;
    else
        b <<= -shift;
    return a == b ? 0 : a < b ? -1 : 1;
}

// The rounded |sum * scale / (divisor * out_scale)| with its sign, in whole numbers.
POOLKIT_ONCE int64_t round_exactly(int64_t sum, double divisor, const Requantization& q) {
    const bool negative = (sum < 0) != (divisor < 0);
    const uint64_t a = static_cast<uint64_t>(sum < 0 ? -sum : sum);
    const uint64_t b = static_cast<uint64_t>(divisor < 0 ? -divisor : divisor);
    if (a == 0 || b == 0) return 0;
    constexpr double far = 2048;  // beyond what any clamp leaves
    const double twice = 2.0 * static_cast<double>(a) / static_cast<double>(b) * q.ratio;
    if (!(twice < far)) return negative ? -1024 : 1024;
    // How many halves there are, and whether there is no rest.
    uint64_t halves = static_cast<uint64_t>(twice);
    const auto above = [&](uint64_t h) {
        const auto rest = static_cast<unsigned __int128>(b) * q.out_mantissa;
        return compare(static_cast<unsigned __int128>(a) * q.mantissa, q.shift + 1, rest * h);
    };
    while (halves > 0 && above(halves) < 0) --halves;
    while (above(halves + 1) >= 0) ++halves;
    const bool exact = above(halves) == 0, half = halves & 1;
    int64_t rounded = static_cast<int64_t>(halves >> 1);
    switch (q.rounding) {
        case Rounding::half_even:
            rounded += half && (!exact || (rounded & 1));
            break;
        case Rounding::half_away:
            rounded += half;
            break;
        case Rounding::half_up:
            rounded += half && !(exact && negative);
            break;
        case Rounding::floor:
            rounded += negative && (half || !exact);
            break;
        case Rounding::trunc:
            break;
    }
    return negative ? -rounded : rounded;
}

// Requantizes runs of sums that have one divisor; what depends on the divisor alone is kept.
struct Requantizer {
    const Requantization& q;
    double divisor = 0.0;
    float by = 0.0f;
    bool divides = false;
    float near_low = 0.0f, near_high = 0.0f;  // distances between which the product is in doubt

    explicit Requantizer(const Geometry& g) : q(g.requantization) { doubt(false); }

    bool to_nearest() const { return q.rounding <= Rounding::half_up; }

    // A product has an error of 3 * 2^-24 of at most 256: below 2^-14. Distances are those of the
    // product from the nearest integer.
    void doubt(bool possible) {
        constexpr float error = 0x1p-14f;
        near_low = to_nearest() ? 0.5f - error : 0.0f;
        near_high = to_nearest() ? 1.0f : error;
        if (!possible) near_low = 2.0f, near_high = 1.0f;
    }

    void use(double new_divisor) {
        if (new_divisor == divisor) return;
        divisor = new_divisor;
        divides = false;
        by = 0.0f;
        doubt(false);
        if (divisor == 0) return;        // of nothing: the zero point
        constexpr double most = 0x1p60;  // saturates, and 0 * most is 0
        const double size = divisor < 0 ? -divisor : divisor, unit = q.ratio / size;
        const double bounded = unit < most ? unit : most;
        by = static_cast<float>(divisor < 0 ? -bounded : bounded);
        // Scales a power of two apart (most often equal): a quotient of few bits is rounded
        // once, which leaves it on its side of every tie, and a tie where it is.
        const double widest = q.ratio < 1 ? size / q.ratio : size;
        const bool few_bits = q.mantissa == q.out_mantissa && widest <= 0x1p15 && q.ratio <= 0x1p15;
        if (few_bits && q.small) {
            const auto whole = static_cast<uint64_t>(size);
            divides = (whole & (whole - 1)) != 0;
            if (divides) by = static_cast<float>(divisor / q.ratio);
        }
        doubt(!(few_bits && q.small));
    }

    // out[j] of n states. The states have a vector of slack behind them; out has none.
    template <bool Even, class A, class O>
    POOLKIT_ONCE void run(const A* state, int64_t n, O* out) const {
        constexpr int width = lanes<float>;
        constexpr float magic = 0x1.8p23f;  // adding it leaves the rounded value in the low bits
        const int32_t zero = q.out_zero_point;
        const Vec<float> factor = broadcast<float>(by), shift = broadcast<float>(magic),
                         low = broadcast<float>(static_cast<float>(lowest_of<O>() - zero)),
                         high = broadcast<float>(static_cast<float>(highest_of<O>() - zero)),
                         from_near = broadcast<float>(near_low),
                         to_near = broadcast<float>(near_high);
        const Vec<int32_t> bias = broadcast<int32_t>(zero - bit_cast<int32_t>(magic));
        Vec<int32_t> doubtful{};
        for (int64_t j = 0; j < n; j += width) {
            const Vec<float> sum = __builtin_convertvector(load<int32_t>(state + j), Vec<float>);
            Vec<float> value = divides ? sum / factor : sum * factor;
            value = (value > low) ? value : low;
            value = (value < high) ? value : high;
            const Vec<float> shifted = value + shift, rest = value - (shifted - shift);
            const Vec<float> distance = absolute(rest);
            doubtful |= (distance >= from_near) & (distance <= to_near);
            Vec<int32_t> rounded = (Vec<int32_t>)shifted + bias;
            if constexpr (!Even) rounded += correction(value, rest);
            const auto narrow = __builtin_convertvector(rounded, typename VectorOf<O, width>::type);
            if (j + width <= n)
                memcpy(out + j, &narrow, sizeof narrow);
            else
                memcpy(out + j, &narrow, n - j);
        }
        if (any(doubtful)) decide(state, n, out);
    }

    // What is added to values rounded half to even. Comparisons are -1 where they are true.
    POOLKIT_INLINE Vec<int32_t> correction(Vec<float> value, Vec<float> rest) const {
        const Vec<float> half = broadcast<float>(0.5f), none{};
        switch (q.rounding) {
            case Rounding::half_away:
                return ((rest == -half) & (value < none)) - ((rest == half) & (value > none));
            case Rounding::half_up:
                return -(rest == half);
            case Rounding::floor:
                return rest < none;
            case Rounding::trunc:
                return ((rest < none) & (value > none)) - ((rest > none) & (value < none));
            default:
                return Vec<int32_t>{};
        }
    }

    // Again, in whole numbers, those that are in doubt.
    template <class A, class O>
    POOLKIT_ONCE void decide(const A* state, int64_t n, O* out) const {
        for (int64_t j = 0; j < n; ++j) {
            const float value = static_cast<float>(static_cast<int32_t>(state[j])) * by;
            if (!(value > -1024.0f && value < 1024.0f)) continue;  // clamped above
            const float rounded = (value + 0x1.8p23f) - 0x1.8p23f, rest = value - rounded;
            const float distance = rest < 0 ? -rest : rest;
            if (!(distance >= near_low && distance <= near_high)) continue;
            const int64_t exact =
                round_exactly(static_cast<int64_t>(state[j]), divisor, q) + q.out_zero_point;
            const int64_t low = lowest_of<O>(), high = highest_of<O>();
            out[j] = static_cast<O>(exact < low ? low : exact > high ? high : exact);
        }
    }

    // A line of states: one row's divisor, and one for each column, or null.
    template <class A, class O>
    POOLKIT_ONCE void line(const A* state, int64_t n, double row, const double* columns,
                           bool uniform, O* out) {
        for (int64_t j = 0; j < n;) {
            int64_t end = n;
            if (columns && !uniform)
                for (end = j + 1; end < n && columns[end] == columns[j];) ++end;
            use(columns ? row * columns[j] : row);
            if (q.rounding == Rounding::half_even)
                run<true>(state + j, end - j, out + j);
            else
                run<false>(state + j, end - j, out + j);
            j = end;
        }
    }
};

}  // namespace
