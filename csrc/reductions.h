// One struct per reduction. `lift` turns a value into a state, `merge` joins two states in order,
// `finish` turns a state into the result (a mean divides before it). All work on a scalar and on a
// vector of lanes alike.
#pragma once

#include "powers.h"

namespace {

template <class T>
constexpr T lowest_of() {
    if constexpr (same<T, float>)
        return -__builtin_inff();
    else if constexpr (same<T, double>)
        return -__builtin_inf();
    else if constexpr (T(-1) < T(0))
        return T(T(1) << (8 * sizeof(T) - 1));
    else
        return T(0);
}
template <class T>
constexpr T highest_of() {
    if constexpr (same<T, float>)
        return __builtin_inff();
    else if constexpr (same<T, double>)
        return __builtin_inf();
    else
        return T(~lowest_of<T>());
}

// Values are compared as they are stored; half types as float, which holds them all.
template <class S>
struct OrderedAccumulator {
    using type = S;
};
template <>
struct OrderedAccumulator<Bfloat16> {
    using type = float;
};
template <>
struct OrderedAccumulator<Float16> {
    using type = float;
};

// Half types add up in float32, integers in 64 bits: no sum of less than 2^32 values overflows.
template <class S>
struct AddingAccumulator {
    using type = int64_t;
};
template <>
struct AddingAccumulator<float> {
    using type = float;
};
template <>
struct AddingAccumulator<double> {
    using type = double;
};
template <>
struct AddingAccumulator<Bfloat16> {
    using type = float;
};
template <>
struct AddingAccumulator<Float16> {
    using type = float;
};

struct Ordered {
    static constexpr bool positions = true;   // a value has a position
    static constexpr bool idempotent = true;  // seeing a value twice changes nothing
    static constexpr bool plain = true;       // lift and finish do nothing
    template <class S>
    static constexpr bool accepts = true;
    template <class S>
    using Accumulator = typename OrderedAccumulator<S>::type;
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return x;
    }
    template <class T>
    static POOLKIT_INLINE T finish(T x, double) {
        return x;
    }
};

// `replaces(a, b)` is true where b, which comes later, is taken instead of a. A NaN is always
// taken and never given up; of equal values the first stays.
struct Max : Ordered {
    template <class A>
    static constexpr A identity() {
        return lowest_of<A>();
    }
    template <class T>
    static POOLKIT_INLINE auto replaces(T a, T b) {
        return replaces_ordered(a, b) | (b != b);
    }
    template <class T>
    static POOLKIT_INLINE auto replaces_ordered(T a, T b) {
        return b > a;
    }
    template <class T>
    static POOLKIT_INLINE T merge_ordered(T a, T b) {
        return (b > a) ? b : a;
    }  // the machine's max
    template <class T>
    static POOLKIT_INLINE T merge(T a, T b) {
        return (b != b) ? b : merge_ordered(a, b);
    }
};

struct Min : Ordered {
    template <class A>
    static constexpr A identity() {
        return highest_of<A>();
    }
    template <class T>
    static POOLKIT_INLINE auto replaces(T a, T b) {
        return replaces_ordered(a, b) | (b != b);
    }
    template <class T>
    static POOLKIT_INLINE auto replaces_ordered(T a, T b) {
        return b < a;
    }
    template <class T>
    static POOLKIT_INLINE T merge_ordered(T a, T b) {
        return (b < a) ? b : a;
    }
    template <class T>
    static POOLKIT_INLINE T merge(T a, T b) {
        return (b != b) ? b : merge_ordered(a, b);
    }
};

// The same for values among which there is no NaN, in a third of the instructions.
template <class R>
struct NoNaN : R {
    template <class T>
    static POOLKIT_INLINE T merge(T a, T b) {
        return R::merge_ordered(a, b);
    }
    template <class T>
    static POOLKIT_INLINE auto replaces(T a, T b) {
        return R::replaces_ordered(a, b);
    }
};

// The same for values that are states already.
template <class R>
struct OfStates : R {
    static constexpr bool positions = false;
    static constexpr bool plain = true;
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return x;
    }
};

struct Adding {
    static constexpr bool positions = false;
    static constexpr bool idempotent = false;
    static constexpr bool plain = false;
    template <class S>
    static constexpr bool accepts = is_float<S>;
    template <class S>
    using Accumulator = typename AddingAccumulator<S>::type;
    template <class A>
    static constexpr A identity() {
        return A(0);
    }
    template <class T>
    static POOLKIT_INLINE T merge(T a, T b) {
        // Unsigned: lanes that nobody looks at may wrap.
        if constexpr (same<T, int64_t>)
            return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
        else if constexpr (same<T, Vec<int64_t>>)
            return (T)((Vec<uint64_t>)a + (Vec<uint64_t>)b);
        else
            return a + b;
    }
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return x;
    }
    template <class T>
    static POOLKIT_INLINE T finish(T x, double) {
        return x + T{};
    }  // -0.0 + 0.0 is 0.0
};

template <class V>
POOLKIT_INLINE V absolute(V x) {
    return (x < V{}) ? -x : x;
}

struct Sum : Adding {
    static constexpr bool plain = true;  // but for the sign of zero
    template <class S>
    static constexpr bool accepts = true;
};

struct SumAbs : Adding {
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return absolute(x);
    }
};

struct SumSquare : Adding {
    template <class T>
    static POOLKIT_INLINE T lift(T x, double) {
        return x * x;
    }
    static POOLKIT_INLINE float finish(float x, double) { return __builtin_sqrtf(x); }
    static POOLKIT_INLINE double finish(double x, double) { return __builtin_sqrt(x); }
    static POOLKIT_INLINE Vec<float> finish(Vec<float> x, double) { return square_root<float>(x); }
    static POOLKIT_INLINE Vec<double> finish(Vec<double> x, double) {
        return square_root<double>(x);
    }
};

struct SumPower : Adding {
    // The common whole exponents are products; 3 costs a tenth of what a power does.
    template <class V>
    static POOLKIT_INLINE V lift(V x, double p) {
        if (p == 3) return absolute(x) * (x * x);
        if (p == 4) return (x * x) * (x * x);
        if constexpr (is_float<V>)
            return power(broadcast<V>(absolute(x)), p)[0];  // the bits of a lane
        else
            return power(absolute(x), p);
    }
    template <class T>
    static POOLKIT_INLINE T finish(T x, double p) {
        if (!(x > T(0))) return x + T(0);
        if (p == 3) return static_cast<T>(__builtin_cbrt(static_cast<double>(x)));
        if (p == 4) return static_cast<T>(__builtin_sqrt(__builtin_sqrt(static_cast<double>(x))));
        return static_cast<T>(__builtin_pow(static_cast<double>(x), 1.0 / p));
    }
};

// Sums of quantized values less their zero point, which the finish makes a mean in the same type
// (requantize.h). In A the sums of all windows fit: `short` holds those of 128 values of 8 bits.
template <class A>
struct QuantizedSum : Adding {
    template <class S>
    static constexpr bool accepts = same<S, int8_t> || same<S, uint8_t>;
    template <class S>
    using Accumulator = A;
    static POOLKIT_INLINE A lift(A x, double zero_point) {
        return static_cast<A>(x - static_cast<A>(zero_point));
    }
    static POOLKIT_INLINE Vec<A> lift(Vec<A> x, double zero_point) {
        return x - broadcast<A>(static_cast<A>(zero_point));
    }
    // Unsigned: lanes that nobody looks at may wrap.
    static POOLKIT_INLINE A merge(A a, A b) {
        return static_cast<A>(static_cast<Code<A>>(a) + static_cast<Code<A>>(b));
    }
    static POOLKIT_INLINE Vec<A> merge(Vec<A> a, Vec<A> b) {
        return (Vec<A>)((Vec<Code<A>>)a + (Vec<Code<A>>)b);
    }
};

template <class R>
constexpr bool requantizes = false;
template <class A>
constexpr bool requantizes<QuantizedSum<A>> = true;

// What, lifted, is the identity.
template <class R, class A>
POOLKIT_INLINE A blank(double p) {
    if constexpr (requantizes<R>)
        return static_cast<A>(p);
    else if constexpr (R::idempotent && !R::plain)  // keys: a lift that undoes itself
        return R::lift(R::template identity<A>(), p);
    else
        return R::template identity<A>();
}

}  // namespace
