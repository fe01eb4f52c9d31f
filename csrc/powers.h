// Logarithms and powers of lanes, by the same rules as elementary.h. Errors are measured against
// mpmath in tests/test_whole_windows.py.
#pragma once

#include "elementary.h"

namespace {

// log((1 + s) / (1 - s)) = 2 s + s^3 curve(s^2), for |s| <= 0.1716.
template <class A>
struct LogarithmOf;
template <>
struct LogarithmOf<float> {
    static constexpr uint32_t root_half = 0x3f3504f3;  // the bits of sqrt(1/2)
    static constexpr float smallest = 0x1p-126f, up = 0x1p+24f, ups = 24.0f;
    static constexpr float infinity = __builtin_inff();
    static constexpr float curve[] = {0x1.555556p-1f, 0x1.9999f0p-2f, 0x1.245a08p-2f,
                                      0x1.de4738p-3f};
};
template <>
struct LogarithmOf<double> {
    static constexpr uint64_t root_half = 0x3fe6a09e667f3bcd;
    static constexpr double smallest = 0x1p-1022, up = 0x1p+54, ups = 54.0;
    static constexpr double infinity = __builtin_inf();
    static constexpr double curve[] = {
        0x1.5555555555555p-1, 0x1.9999999999a4fp-2, 0x1.249249247343fp-2, 0x1.c71c72078b928p-3,
        0x1.745cf674f6889p-3, 0x1.3b1cbf421a439p-3, 0x1.0fb04d4fa4e54p-3, 0x1.0c97816496c47p-3};
};

// x = m 2^k with m in [sqrt(1/2), sqrt(2)), for positive x.
template <class A>
POOLKIT_INLINE Vec<A> mantissa_of(Vec<A> x, Vec<A>& k) {
    using E = ExponentialOf<A>;
    using L = LogarithmOf<A>;
    using Bits = Vec<Code<A>>;
    const auto tiny = x < broadcast<A>(L::smallest);
    x = tiny ? x * broadcast<A>(L::up) : x;
    // Not every instruction set shifts signed lanes or converts them: the exponent is counted from
    // far below, and becomes a number as the low bits of a large one.
    const Bits bits = (Bits)x - broadcast<Code<A>>(L::root_half);
    const Bits from_below =
        (bits + broadcast<Code<A>>(Code<A>(2 * E::bias) << E::mantissa)) >> E::mantissa;
    const Vec<A> large = broadcast<A>(E::round);
    k = (Vec<A>)((Bits)large + from_below) - large - broadcast<A>(A(2 * E::bias));
    const Bits exponent = (from_below - broadcast<Code<A>>(2 * E::bias)) << E::mantissa;
    k = tiny ? k - broadcast<A>(L::ups) : k;
    return (Vec<A>)((Bits)x - exponent);
}

// log(x) to 1 ULP; 0 gives -infinity, negative values NaN.
template <class A>
POOLKIT_INLINE Vec<A> logarithm_of(Vec<A> x) {
    using E = ExponentialOf<A>;
    using L = LogarithmOf<A>;
    Vec<A> k;
    const Vec<A> f = mantissa_of<A>(x, k) - broadcast<A>(A(1));
    // log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 curve): the first two terms carry the digits.
    const Vec<A> s = f / (f + broadcast<A>(A(2)));
    const Vec<A> z = s * s, half = f * f * broadcast<A>(A(0.5));
    const Vec<A> rest = s * (half + z * polynomial<A>(z, L::curve));
    Vec<A> y = k * broadcast<A>(E::ln2_high) - ((half - (rest + k * broadcast<A>(E::ln2_low))) - f);
    y = (x == Vec<A>{}) ? broadcast<A>(-L::infinity) : y;
    y = (x == broadcast<A>(L::infinity)) ? x : y;
    return (x >= Vec<A>{}) ? y : broadcast<A>(__builtin_nanf(""));
}
POOLKIT_INLINE Vec<float> logarithm(Vec<float> x) { return logarithm_of<float>(x); }
POOLKIT_INLINE Vec<double> logarithm(Vec<double> x) { return logarithm_of<double>(x); }

// The error of a * b, exactly (Dekker, "A floating-point technique for extending the available
// precision", 1971).
template <class A>
POOLKIT_INLINE Vec<A> product_error(Vec<A> a, Vec<A> b) {
    const auto upper = [](Vec<A> v) {
        const Vec<A> scaled = v * broadcast<A>(same<A, float> ? A(0x1p12 + 1) : A(0x1p27 + 1));
        return scaled - (scaled - v);
    };
    const Vec<A> a1 = upper(a), b1 = upper(b), a2 = a - a1, b2 = b - b1;
    return ((a1 * b1 - a * b) + a1 * b2 + a2 * b1) + a2 * b2;
}

// x^p for x >= 0 and p > 0, to 1.5 ULP + |log(x^p)| / 32 ULP: the logarithm, in two parts, has 6
// bits more than the result.
template <class A>
POOLKIT_INLINE Vec<A> power_of(Vec<A> x, double exponent, double exponent_rest = 0) {
    using E = ExponentialOf<A>;
    using V = Vec<A>;
    V k;
    const V one = broadcast<A>(A(1)), m = mantissa_of<A>(x, k);
    const V a = m - one, b = m + one, b_low = m - (b - one), inverse = one / b;
    const V s = a * inverse, z = s * s;
    const V s_low = (((a - s * b) - product_error<A>(s, b)) - s * b_low) * inverse;
    const V first = k * broadcast<A>(E::ln2_high), sum = first + (s + s);
    const V low = ((s + s) - (sum - first)) + (s * z * polynomial<A>(z, LogarithmOf<A>::curve) +
                                               (s_low + s_low) + k * broadcast<A>(E::ln2_low));
    const V log_high = sum + low, log_low = low - (log_high - sum);
    const A nearest = static_cast<A>(exponent);
    const V p = broadcast<A>(nearest);
    const V p_low =
        broadcast<A>(static_cast<A>((exponent - static_cast<double>(nearest)) + exponent_rest));
    const V high = log_high * p, far = broadcast<A>(A(2000));
    const auto usual = (high < far) & (high > -far);
    const V tail = usual ? product_error<A>(log_high, p) + (log_low * p + log_high * p_low) : V{};
    const V y = exponential(high, tail);
    return ((x > V{}) & (x < broadcast<A>(LogarithmOf<A>::infinity))) ? y : x;
}
POOLKIT_INLINE Vec<float> power(Vec<float> x, double p) { return power_of<float>(x, p); }
POOLKIT_INLINE Vec<double> power(Vec<double> x, double p) { return power_of<double>(x, p); }
// x^(1/p) by the same bound.
template <class A>
POOLKIT_INLINE Vec<A> root_of(Vec<A> x, double p) {
    const double inverse = 1.0 / p;
    return power_of<A>(x, inverse, __builtin_fma(-inverse, p, 1.0) / p);
}

}  // namespace
