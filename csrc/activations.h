// Activations: elementwise functions that are applied to what is pooled, stripe by stripe.
//
// `value` is the function; `gradient` is what comes back through it: the gradient times the
// derivative at x. Rows of (activation, dtype) are generated from registry.def, and none of them
// knows a reduction.
#pragma once

#include "elementary.h"
#include "kernels.h"
#include "reductions.h"

namespace {

// x where it is above 0, else 0, never -0.0; a NaN stays.
struct ReLU {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return (x <= Vec<A>{}) ? Vec<A>{} : x;
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        return (x <= Vec<A>{}) ? Vec<A>{} : grad;
    }
};

struct LeakyReLU {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A> slope) {
        return (x > Vec<A>{}) ? x : x * slope;
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A> slope) {
        return (x > Vec<A>{}) ? grad : grad * slope;
    }
};

struct Exp {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return exponential(x);
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        return grad * exponential(x);
    }
};

struct Sigmoid {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return logistic<A>(x);
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        const Vec<A> y = logistic<A>(x);
        return grad * (y * (broadcast<A>(A(1)) - y));
    }
};

struct Tanh {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return hyperbolic_tangent<A>(x);
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        const Vec<A> y = hyperbolic_tangent<A>(x);
        return grad * (broadcast<A>(A(1)) - y * y);
    }
};

// x / (1 + e^-x)
struct SiLU {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        const Vec<A> small = decay<A>(x);
        return ((x < Vec<A>{}) ? x * small : x) / (broadcast<A>(A(1)) + small);
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        const Vec<A> one = broadcast<A>(A(1)), y = logistic<A>(x);
        return grad * (y * (one + x * (one - y)));
    }
};

// x P(a normal number < x)
struct GELU {
    template <class A>
    static POOLKIT_INLINE Vec<A> below(Vec<A> x, Vec<A> tail) {
        return (x > Vec<A>{}) ? broadcast<A>(A(1)) - tail : tail;
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return x * below<A>(x, normal<A>(x).tail);
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        const Normal<A> at = normal<A>(x);
        const Vec<A> density = at.bell * broadcast<A>(A(0x1.9884533d43651p-2));  // 1 / sqrt(2 pi)
        return grad * (below<A>(x, at.tail) + x * density);
    }
};

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u)
struct GELUTanh {
    static constexpr double scale = 0x1.9884533d43651p+0, cubic = 0.044715;  // 2 sqrt(2 / pi)

    // Beyond 30 the function is x or 0, and the cube overflows.
    template <class A>
    static POOLKIT_INLINE Vec<A> bounded(Vec<A> x) {
        const Vec<A> most = broadcast<A>(A(30));
        x = (x > most) ? most : x;
        return (x < -most) ? -most : x;
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> share(Vec<A> x) {
        const Vec<A> x2 = x * x * broadcast<A>(A(cubic));
        return logistic<A>(broadcast<A>(A(scale)) * (x + x * x2));
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        return x * share<A>(bounded<A>(x));
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        x = bounded<A>(x);
        const Vec<A> one = broadcast<A>(A(1)), y = share<A>(x);
        const Vec<A> slope = broadcast<A>(A(scale)) * (one + broadcast<A>(A(3 * cubic)) * (x * x));
        return grad * (y + x * (y * (one - y)) * slope);
    }
};

// x min(max(x + 3, 0), 6) / 6
struct Hardswish {
    template <class A>
    static POOLKIT_INLINE Vec<A> value(Vec<A> x, Vec<A>) {
        const Vec<A> six = broadcast<A>(A(6));
        Vec<A> share = x + broadcast<A>(A(3));
        share = (share < Vec<A>{}) ? Vec<A>{} : share;
        share = (share > six) ? six : share;
        return x * share / six;
    }
    template <class A>
    static POOLKIT_INLINE Vec<A> gradient(Vec<A> grad, Vec<A> x, Vec<A>) {
        const Vec<A> three = broadcast<A>(A(3));
        const Vec<A> middle = grad * (x / three + broadcast<A>(A(0.5)));
        return (x <= -three) ? Vec<A>{} : (x >= three) ? grad : middle;
    }
};

// out = the function of n elements; the two may be the same.
template <class Act, class S>
POOLKIT_ONCE void activate_line(const void* x, void* out, int64_t n, double parameter) {
    using A = typename AddingAccumulator<S>::type;
    const S* from = static_cast<const S*>(x);
    S* to = static_cast<S*>(out);
    const Vec<A> p = broadcast<A>(static_cast<A>(parameter));
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>)
        store<A>(to + i, Act::template value<A>(load<A>(from + i), p));
    if (i == n) return;
    S rest[lanes<A>] = {};
    memcpy(rest, from + i, (n - i) * sizeof(S));
    store<A>(rest, Act::template value<A>(load<A>(rest), p));
    memcpy(to + i, rest, (n - i) * sizeof(S));
}

// grad becomes what comes back through the activation at x.
template <class Act, class S>
POOLKIT_ONCE void gradient_line(void* grad, const void* x, int64_t n, double parameter) {
    using A = typename AddingAccumulator<S>::type;
    S* to = static_cast<S*>(grad);
    const S* from = static_cast<const S*>(x);
    const Vec<A> p = broadcast<A>(static_cast<A>(parameter));
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>)
        store<A>(to + i, Act::template gradient<A>(load<A>(to + i), load<A>(from + i), p));
    if (i == n) return;
    S rest[lanes<A>] = {}, at[lanes<A>] = {};
    memcpy(rest, to + i, (n - i) * sizeof(S));
    memcpy(at, from + i, (n - i) * sizeof(S));
    store<A>(rest, Act::template gradient<A>(load<A>(rest), load<A>(at), p));
    memcpy(to + i, rest, (n - i) * sizeof(S));
}

// Where a value is 0 or below, its gradient ends: the code becomes one that no position has.
template <class S, class P>
void mark_codes(const S* values, P* codes, int64_t n, P dead) {
    for (int64_t i = 0; i < n; ++i) codes[i] = widen(values[i]) <= 0 ? dead : codes[i];
}
template <class S>
POOLKIT_ONCE void mark_line(const void* values, void* codes, int64_t n, int64_t code, int bytes) {
    const S* from = static_cast<const S*>(values);
    if (bytes == 1)
        mark_codes(from, static_cast<uint8_t*>(codes), n, static_cast<uint8_t>(code));
    else if (bytes == 2)
        mark_codes(from, static_cast<uint16_t*>(codes), n, static_cast<uint16_t>(code));
    else
        mark_codes(from, static_cast<uint32_t*>(codes), n, static_cast<uint32_t>(code));
}

}  // namespace
