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
// half of the exponent first, which leaves a normal number, then the rest. `rounded` is n with the
// number added that rounds to integers: its low bits are those of n.
template <class A>
POOLKIT_INLINE Vec<A> scaled(Vec<A> y, [[maybe_unused]] Vec<A> n, [[maybe_unused]] Vec<A> rounded) {
    using E = ExponentialOf<A>;
#if defined(__AVX512F__)
    if constexpr (same<A, float>) return (Vec<A>)_mm512_scalef_ps((__m512)y, (__m512)n);
    if constexpr (same<A, double>) return (Vec<A>)_mm512_scalef_pd((__m512d)y, (__m512d)n);
#endif
    // Twice the bias keeps the integer positive: not every instruction set shifts signed lanes.
    const Vec<Code<A>> integer = (Vec<Code<A>>)rounded - (Vec<Code<A>>)broadcast<A>(E::round) +
                                 broadcast<Code<A>>(2 * E::bias);
    const Vec<Code<A>> half = integer >> 1;  // its exponent, and the bias of a float
    const Vec<A> first = (Vec<A>)(half << E::mantissa);
    return y * first * (Vec<A>)((integer - half) << E::mantissa);
}

// x + tail = n log(2) + r with |r| < 0.35, and e^r = 1 + r + r^2 curve(r).
template <class A, bool Above, bool Tail>
POOLKIT_INLINE Vec<A> exponential_of(Vec<A> x, Vec<A> tail) {
    using E = ExponentialOf<A>;
    if constexpr (Above) x = (x > broadcast<A>(E::most)) ? broadcast<A>(E::most) : x;
    x = (x < broadcast<A>(E::least)) ? broadcast<A>(E::least) : x;
    const Vec<A> round = broadcast<A>(E::round);
    const Vec<A> rounded = x * broadcast<A>(E::log2_e) + round;
    const Vec<A> n = rounded - round;
    Vec<A> r = (x - n * broadcast<A>(E::ln2_high)) - n * broadcast<A>(E::ln2_low);
    if constexpr (Tail) r = r + tail;
    const Vec<A> y = broadcast<A>(A(1)) + (r + r * r * polynomial<A>(r, E::curve));
    return scaled<A>(y, n, rounded);
}

// e^x to 1.1 ULP, subnormal results too. Above the range infinity, below it 0; a NaN stays one.
POOLKIT_INLINE Vec<float> exponential(Vec<float> x) {
    return exponential_of<float, true, false>(x, x);
}
POOLKIT_INLINE Vec<double> exponential(Vec<double> x) {
    return exponential_of<double, true, false>(x, x);
}
// e^(x + tail), the tail being a correction to x of at most 0.1.
POOLKIT_INLINE Vec<float> exponential(Vec<float> x, Vec<float> tail) {
    return exponential_of<float, true, true>(x, tail);
}
POOLKIT_INLINE Vec<double> exponential(Vec<double> x, Vec<double> tail) {
    return exponential_of<double, true, true>(x, tail);
}
// e^-|x|, one step less.
template <class A>
POOLKIT_INLINE Vec<A> magnitude(Vec<A> x) {
    return (Vec<A>)((Vec<Code<A>>)x & broadcast<Code<A>>(~(Code<A>(1) << (8 * sizeof(A) - 1))));
}
template <class A>
POOLKIT_INLINE Vec<A> decay(Vec<A> x) {
    return exponential_of<A, false, false>(-magnitude<A>(x), x);
}

template <class A>
POOLKIT_INLINE Vec<A> with_sign_of(Vec<A> x, Vec<A> sign) {
    const Vec<Code<A>> top = broadcast<Code<A>>(Code<A>(1) << (8 * sizeof(A) - 1));
    return (Vec<A>)((Vec<Code<A>>)x | ((Vec<Code<A>>)sign & top));
}

// 1 / (1 + e^-x) to 2.5 ULP: a small result is e^x / (1 + e^x), which does not overflow on the way.
template <class A>
POOLKIT_INLINE Vec<A> logistic(Vec<A> x) {
    const Vec<A> one = broadcast<A>(A(1)), small = decay<A>(x);
    return ((x < Vec<A>{}) ? small : one) / (one + small);
}

template <class A>
struct TangentOf;  // tanh(x) = x + x z curve(z), z = x^2, for |x| < 0.625
template <>
struct TangentOf<float> {
    static constexpr float curve[] = {-0x1.555556p-2f, 0x1.1110e8p-3f,  -0x1.ba08b4p-5f,
                                      0x1.64a85cp-6f,  -0x1.1162e0p-7f, 0x1.2c630ep-9f};
};
template <>
struct TangentOf<double> {
    static constexpr double curve[] = {
        -0x1.5555555555555p-2,  0x1.11111111110a7p-3,   -0x1.ba1ba1ba0ef4dp-5,
        0x1.664f487e0093ap-6,   -0x1.226e34722d470p-7,  0x1.d6d39a8df5abcp-9,
        -0x1.7d9f69ddebdffp-10, 0x1.3526b4b08ec06p-11,  -0x1.f240d1b1ff5e4p-13,
        0x1.843ac15df85cap-14,  -0x1.05a387c7968e3p-15, 0x1.b2d7957098a26p-18};
};

// The hyperbolic tangent to 2 ULP.
template <class A>
POOLKIT_INLINE Vec<A> hyperbolic_tangent(Vec<A> x) {
    const Vec<A> one = broadcast<A>(A(1)), size = magnitude<A>(x), square = x * x;
    const Vec<A> near = size + size * (square * polynomial<A>(square, TangentOf<A>::curve));
    const Vec<A> far = one - broadcast<A>(A(2)) / (exponential(size + size) + one);
    return with_sign_of<A>((size < broadcast<A>(A(0.625))) ? near : far, x);
}

template <class A>
struct NormalOf;  // e^(z^2 / 2) P(a normal number > z) = curve((z - 4) / (z + 4))
template <>
struct NormalOf<float> {
    static constexpr float most = 15.0f;  // beyond which the probability is 0
    static constexpr uint32_t short_square = 0xfffff000u;
    static constexpr float curve[] = {0x1.82b4bcp-4f,   -0x1.5cf97cp-3f, 0x1.fd751ap-4f,
                                      -0x1.25b6aap-4f,  0x1.f9b01cp-6f,  -0x1.1645d2p-7f,
                                      0x1.0a52bep-11f,  0x1.4f75b4p-11f, -0x1.8a1632p-13f,
                                      -0x1.9bba30p-15f, 0x1.c92158p-16f, 0x1.1df78ap-17f};
};
template <>
struct NormalOf<double> {
    static constexpr double most = 39.0;
    static constexpr uint64_t short_square = 0xfffffffff8000000u;
    static constexpr double curve[] = {
        0x1.82b4bb8c94dcep-4,   -0x1.5cf97b0ae882cp-3,  0x1.fd751a1fba3e3p-4,
        -0x1.25b6aa9658248p-4,  0x1.f9b05f0efb98cp-6,   -0x1.1644dc2f6e23ap-7,
        0x1.0a1bd4199f8d6p-11,  0x1.4eec24da93394p-11,  -0x1.888dc9f06515cp-13,
        -0x1.7e2469aac2bcep-15, 0x1.e0a3a9fb3b5e9p-16,  0x1.36d27930abc67p-18,
        -0x1.20cdadfaf8bfep-18, -0x1.bd60d187afc80p-21, 0x1.630b7c6dc9812p-21,
        0x1.bb2462cebdf00p-23,  -0x1.92a484ab9e295p-24, -0x1.c99593d5ae996p-25,
        0x1.2c3cf3a3eaeafp-27,  0x1.a5707a2e0f827p-27,  0x1.9c5bc21359d0fp-31,
        -0x1.2af2e29266f0fp-29, -0x1.2412c9e5039dap-31, 0x1.da735f2aaebbcp-33,
        0x1.757be9d723cf2p-34};
};

// P(a normal number > |x|), to 8 ULP, that is erfc(|x| / sqrt(2)) / 2; and e^(-x^2 / 2).
//
// The square is taken in two parts, the first of which is exact: rounded once, it would cost as
// many ULP as it is large.
template <class A>
struct Normal {
    Vec<A> tail, bell;
};
template <class A>
POOLKIT_INLINE Normal<A> normal(Vec<A> x) {
    using N = NormalOf<A>;
    const Vec<A> half = broadcast<A>(A(0.5)), most = broadcast<A>(N::most);
    const Vec<A> size = magnitude<A>(x), z = (size > most) ? most : size;
    const Vec<A> first = (Vec<A>)((Vec<Code<A>>)z & broadcast<Code<A>>(N::short_square));
    const Vec<A> bell = exponential(-(first * first) * half, (first - z) * (first + z) * half);
    const Vec<A> four = broadcast<A>(A(4));
    return {bell * polynomial<A>((z - four) / (z + four), N::curve), bell};
}

}  // namespace
