// Elementary functions on lanes: additions, multiplications and divisions only, in one order, so
// that they have the same bits on every instruction set. Errors are measured against mpmath in
// tests/test_activations.py; 1 ULP is the distance of two neighbouring results.
//
// The coefficients are interpolations at Chebyshev nodes, computed with 60 digits.
#pragma once

#include "lanes.h"

namespace {

// The value of a polynomial, the coefficients from the constant upwards.
template <class A, int N>
POOLKIT_INLINE Vec<A> polynomial(Vec<A> x, const A (&coefficients)[N]) {
    Vec<A> y = broadcast<A>(coefficients[N - 1]);
    for (int i = N - 2; i >= 0; --i) y = y * x + broadcast<A>(coefficients[i]);
    return y;
}

template <class A>
struct ExponentialOf;
template <>
struct ExponentialOf<float> {
    static constexpr int mantissa = 23;
    static constexpr uint32_t bias = 127;
    static constexpr float log2_e = 0x1.715476p+0f;
    // The high part of log(2) has so few bits that its products with an exponent are exact.
    static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    // Beyond these the result is infinity or 0.
    static constexpr float most = 89.0f, least = -104.0f;
    static constexpr float round = 0x1.8p+23f;  // adding this rounds to an integer
    static constexpr float curve[] = {0x1p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f, 0x1.120ba2p-7f,
                                      0x1.6d113cp-10f};
};
template <>
struct ExponentialOf<double> {
    static constexpr int mantissa = 52;
    static constexpr uint64_t bias = 1023;
    static constexpr double log2_e = 0x1.71547652b82fep+0;
    static constexpr double ln2_high = 0x1.62e42fefa3p-1, ln2_low = 0x1.3de6af278ece6p-42;
    static constexpr double most = 710.0, least = -746.0;
    static constexpr double round = 0x1.8p+52;
    static constexpr double curve[] = {
        0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d4fp-5,  0x1.11111111109adp-7,
        0x1.6c16c17893833p-10, 0x1.a01a01a7c8d47p-13, 0x1.a019b8ef67c6cp-16, 0x1.71de0d9c145d0p-19,
        0x1.2891a8c1d838dp-22, 0x1.af38d53857513p-26};
};

// y * 2^n for integers n from -2 * bias to 2 * bias, rounded once where the result is subnormal:
// half of the exponent first, which leaves a normal number, then the rest. The integer is given as
// n + 2 * bias, because not every instruction set shifts signed 64-bit lanes.
template <class A>
POOLKIT_INLINE Vec<A> scaled(Vec<A> y, Vec<Code<A>> n_and_twice_bias) {
    using E = ExponentialOf<A>;
    const Vec<Code<A>> half = n_and_twice_bias >> 1;  // its exponent, and the bias of a float
    const Vec<A> first = (Vec<A>)(half << E::mantissa);
    return y * first * (Vec<A>)((n_and_twice_bias - half) << E::mantissa);
}

// e^(x + tail) to 1.1 ULP, subnormal results too; the tail is a correction to x of at most 0.1.
// Above the range infinity, below it 0; a NaN stays one.
//
// x + tail = n log(2) + r with |r| < 0.35, and e^r = 1 + r + r^2 curve(r).
template <class A>
POOLKIT_INLINE Vec<A> exponential_of(Vec<A> x, Vec<A> tail) {
    using E = ExponentialOf<A>;
    x = (x > broadcast<A>(E::most)) ? broadcast<A>(E::most) : x;
    x = (x < broadcast<A>(E::least)) ? broadcast<A>(E::least) : x;
    const Vec<A> round = broadcast<A>(E::round);
    const Vec<A> rounded = x * broadcast<A>(E::log2_e) + round;
    const Vec<A> n = rounded - round;
    const Vec<A> r = (x - n * broadcast<A>(E::ln2_high)) - n * broadcast<A>(E::ln2_low) + tail;
    const Vec<A> y = broadcast<A>(A(1)) + (r + r * r * polynomial<A>(r, E::curve));
    const Vec<Code<A>> integer = (Vec<Code<A>>)rounded - (Vec<Code<A>>)round;
    return scaled<A>(y, integer + broadcast<Code<A>>(2 * E::bias));
}
POOLKIT_INLINE Vec<float> exponential(Vec<float> x, Vec<float> tail = Vec<float>{}) {
    return exponential_of<float>(x, tail);
}
POOLKIT_INLINE Vec<double> exponential(Vec<double> x, Vec<double> tail = Vec<double>{}) {
    return exponential_of<double>(x, tail);
}

}  // namespace
