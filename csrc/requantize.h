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

// The rounded |sum * scale / (divisor * out_scale)| with its sign, in whole numbers.
POOLKIT_ONCE int64_t round_exactly(int64_t sum, double divisor, const Requantization& q) {
    const bool negative = (sum < 0) != (divisor < 0);
    const uint64_t a = static_cast<uint64_t>(sum < 0 ? -sum : sum);
    const uint64_t b = static_cast<uint64_t>(divisor < 0 ? -divisor : divisor);
    if (a == 0 || b == 0) return 0;
    constexpr double far = 2048;  // beyond what any clamp leaves
    const double twice = 2.0 * static_cast<double>(a) / static_cast<double>(b) * q.ratio;
    if (!(twice < far)) return negative ? -1024 : 1024;
    // How many halves there are, and whether there is no rest. Of two numbers that are at most 2^12
    // apart neither leaves 128 bits when they are brought to one exponent.
    uint64_t halves = 0;
    bool exact = false;
    if (twice >= 0.5) {
        auto dividend = static_cast<unsigned __int128>(a) * q.mantissa;
        auto unit = static_cast<unsigned __int128>(b) * q.out_mantissa;
        const int shift = q.shift + 1;
        if (shift >= 0)
            dividend <<= shift;
        else
            unit <<= -shift;
        halves = static_cast<uint64_t>(twice);  // or one more or less
        auto rest = static_cast<__int128>(dividend - unit * halves);
        if (rest < 0)
            --halves, rest += unit;
        else if (rest >= static_cast<__int128>(unit))
            ++halves, rest -= unit;
        exact = rest == 0;
    }
    const bool half = halves & 1;
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
    // The distance from an integer from which on (to the nearest) or up to which (else) the product
    // is in doubt; one that is never met if it is not.
    float doubt;

    explicit Requantizer(const Geometry& g) : q(g.requantization), doubt(never()) {}

    bool to_nearest() const { return q.rounding <= Rounding::half_up; }
    float never() const { return to_nearest() ? 2.0f : -1.0f; }

    void use(double new_divisor) {
        if (new_divisor == divisor) return;
        divisor = new_divisor;
        divides = false;
        fixed = {};
        by = 0.0f;
        doubt = never();
        if (divisor == 0) return;        // of nothing: the zero point
        constexpr double most = 0x1p60;  // saturates, and 0 * most is 0
        const double size = divisor < 0 ? -divisor : divisor, unit = q.ratio / size;
        const double bounded = unit < most ? unit : most;
        by = static_cast<float>(divisor < 0 ? -bounded : bounded);
        // Scales a power of two apart (most often equal): a quotient of few bits is rounded
        // once, which leaves it on its side of every tie, and a tie where it is.
        const double widest = q.ratio < 1 ? size / q.ratio : size;
        if (q.largest < 0x1p24 && q.mantissa == q.out_mantissa && widest <= 0x1p12 &&
            q.ratio <= 0x1p12) {
            const auto whole = static_cast<uint64_t>(size);
            // Thirds, fifths, ... have no ties, so that a product does.
            const bool no_ties = to_nearest() && q.ratio >= 1 && (whole & 1);
            const bool power = (whole & (whole - 1)) == 0;
            if (power)
                use_power(size / q.ratio);
            else if (no_ties)
                use_factor(size / q.ratio);
            divides = !power && !no_ties;
            if (divides) by = static_cast<float>(divisor / q.ratio);
            return;
        }
        // A product has an error of 3 * 2^-24 of at most 256: below 2^-14.
        doubt = to_nearest() ? 0.5f - 0x1p-14f : 0x1p-14f;
    }

    // For most inherited parameters, on twice as many lanes: (sum + offset + (sum >> shift & mask))
    // >> bits rounds in every way for divisors that are small powers of two. For odd ones the sum
    // is first multiplied by factor / 2^16.
    struct Fixed {
        int bits;  // 0: not a case for it
        int16_t offset, mask;
        int shift;
        int16_t factor;  // 0: 1
    };
    Fixed fixed{};

    // Sums stay below 255 * 128, so that with up to 2^6 added they fit 16 bits.
    void use_power(double steps) {
        if (divisor < 0 || steps < 2 || steps > 128) return;
        int bits = 1;
        while ((1 << bits) < steps) ++bits;
        const auto half = static_cast<int16_t>(1 << (bits - 1));
        const auto below = static_cast<int16_t>(half - 1);
        switch (q.rounding) {
            case Rounding::half_even:
                fixed = {bits, below, 1, bits, 0};
                break;
            case Rounding::half_away:
                fixed = {bits, half, -1, 15, 0};
                break;
            case Rounding::half_up:
                fixed = {bits, half, 0, 15, 0};
                break;
            case Rounding::floor:
                fixed = {bits, 0, 0, 15, 0};
                break;
            case Rounding::trunc:
                fixed = {bits, 0, static_cast<int16_t>(half + below), 15, 0};
                break;
        }
    }

    // Without ties: what is closest to one is 1 / (2 * divisor) away from it, and the rounding of
    // the factor moves no result so far.
    void use_factor(double steps) {
        if (divisor < 0 || steps < 5 || steps > 0x1p12) return;
        int bits = 1;
        double factor = 0x1p17 / steps;
        for (; factor < 0x1p14; factor *= 2) ++bits;
        const double whole = static_cast<double>(static_cast<int64_t>(factor + 0.5));
        const double error = whole > factor ? whole - factor : factor - whole;
        if (q.largest * error * q.ratio >= 0.49 * factor) return;
        fixed = {bits, static_cast<int16_t>(1 << (bits - 1)), 0, 15, static_cast<int16_t>(whole)};
    }

    // What `fixed` does to vectors of sums. put(j, v) stores results j ... of n.
    template <class O>
    struct PutFixed {
        using V = Vec<int16_t>;
        using U = Vec<uint16_t>;  // lanes that nobody looks at may wrap
        static constexpr int width = lanes<int16_t>;
        V offset, mask, zero, factor, low, high;
        int bits, shift;
        bool scales;
        O* to;
        int64_t n;

        POOLKIT_INLINE auto rounded(V sum) const {
            V value = (V)((U)sum + (U)((sum >> shift) & mask));
            if (scales) value = multiply_high(sum, factor);
            value = ((V)((U)value + (U)offset) >> bits) + zero;
            value = (value > low) ? value : low;
            value = (value < high) ? value : high;
            return __builtin_convertvector(value, typename VectorOf<O, width>::type);
        }
        POOLKIT_INLINE void operator()(int64_t j, V sum) const {
            const auto done = rounded(sum);
            if (j + width <= n) {
                memcpy(to + j, &done, sizeof done);
            } else {
                O lane[width];
                memcpy(lane, &done, sizeof done);
                for (int64_t i = j; i < n; ++i) to[i] = lane[i - j];
            }
        }
    };

    template <class O>
    POOLKIT_INLINE PutFixed<O> put_fixed(O* to, int64_t n) const {
        return {broadcast<int16_t>(fixed.offset),
                broadcast<int16_t>(fixed.mask),
                broadcast<int16_t>(static_cast<int16_t>(q.out_zero_point)),
                broadcast<int16_t>(fixed.factor),
                broadcast<int16_t>(lowest_of<O>()),
                broadcast<int16_t>(highest_of<O>()),
                fixed.bits,
                fixed.shift,
                fixed.factor != 0,
                to,
                n};
    }

    template <class O>
    POOLKIT_ONCE void run_fixed(const int16_t* state, int64_t n, O* out) const {
        const PutFixed<O> put = put_fixed(out, n);
        constexpr int width = lanes<int16_t>;
        int64_t j = 0;
        for (; j + width <= n; j += width) put(j, load<int16_t>(state + j));
        if (j < n)
            put(n >= width ? n - width : 0, load<int16_t>(state + (n >= width ? n - width : 0)));
    }

    // Stores vectors of results, made by requantized(j), over out[0, n) and nowhere else.
    template <int Width, class O, class Make>
    static POOLKIT_INLINE void requantize_lanes(int64_t n, O* out, Make requantized) {
        int64_t j = 0;
        for (; j + Width <= n; j += Width) {
            const auto done = requantized(j);
            memcpy(out + j, &done, sizeof done);
        }
        if (j < n && n >= Width) {  // again some that are done: same values
            const auto done = requantized(n - Width);
            memcpy(out + n - Width, &done, sizeof done);
        } else if (j < n) {
            const auto done = requantized(0);
            O lane[Width];
            memcpy(lane, &done, sizeof done);
            for (int64_t i = 0; i < n; ++i) out[i] = lane[i];
        }
    }

    // out[j] of n states, behind which a vector can be read; behind out nothing is written.
    template <bool Even, bool Doubt, class A, class O>
    POOLKIT_ONCE void run(const A* state, int64_t n, O* out) const {
        constexpr int width = lanes<float>;
        constexpr float magic = 0x1.8p23f;  // adding it leaves the rounded value in the low bits
        const int32_t zero = q.out_zero_point;
        const Vec<float> factor = broadcast<float>(by), shift = broadcast<float>(magic),
                         low = broadcast<float>(static_cast<float>(lowest_of<O>() - zero)),
                         high = broadcast<float>(static_cast<float>(highest_of<O>() - zero)),
                         near = broadcast<float>(doubt);
        const Vec<int32_t> bias = broadcast<int32_t>(zero - bit_cast<int32_t>(magic));
        Vec<int32_t> doubtful{};
        requantize_lanes<width>(n, out, [&](int64_t j) {
            const Vec<float> sum = __builtin_convertvector(load<int32_t>(state + j), Vec<float>);
            Vec<float> value = divides ? sum / factor : sum * factor;
            value = (value > low) ? value : low;
            value = (value < high) ? value : high;
            const Vec<float> shifted = value + shift;
            Vec<int32_t> rounded = (Vec<int32_t>)shifted + bias;
            const Vec<float> rest = value - (shifted - shift);
            if constexpr (Doubt) {
                const Vec<float> distance = absolute(rest);
                doubtful |= to_nearest() ? distance >= near : distance <= near;
            }
            if constexpr (!Even) rounded += correction(value, rest);
            return __builtin_convertvector(rounded, typename VectorOf<O, width>::type);
        });
        if constexpr (Doubt)
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
            if (to_nearest() ? distance < doubt : distance > doubt) continue;
            const int64_t exact =
                round_exactly(static_cast<int64_t>(state[j]), divisor, q) + q.out_zero_point;
            const int64_t low = lowest_of<O>(), high = highest_of<O>();
            out[j] = static_cast<O>(exact < low ? low : exact > high ? high : exact);
        }
    }

    template <class A, class O>
    POOLKIT_INLINE void run_any(const A* state, int64_t n, O* out) const {
        if constexpr (same<A, int16_t>)
            if (fixed.bits) return run_fixed(state, n, out);
        if (q.rounding != Rounding::half_even)
            run<false, true>(state, n, out);
        else if (doubt != never())
            run<true, true>(state, n, out);
        else
            run<true, false>(state, n, out);
    }

    // A line of states: one row's divisor, and one for each column, or null.
    template <class A, class O>
    POOLKIT_INLINE void line(const A* state, int64_t n, double row, const double* columns,
                             bool uniform, O* out) {
        for (int64_t j = 0; j < n;) {
            int64_t end = n;
            if (columns && !uniform)
                for (end = j + 1; end < n && columns[end] == columns[j];) ++end;
            use(columns ? row * columns[j] : row);
            run_any(state + j, end - j, out + j);
            j = end;
        }
    }
};

}  // namespace
