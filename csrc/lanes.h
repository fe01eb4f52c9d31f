// SIMD lanes on the compiler's own vector types: one source for every instruction set.
// Everything is in an anonymous namespace, because this file is compiled once per instruction set
// and two copies of one inline function must never be merged by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define POOLKIT_INLINE inline __attribute__((always_inline))
// For loops that are worth a call: inlined into every caller they only cost compile time.
#define POOLKIT_ONCE __attribute__((noinline))

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

template <bool Condition, class Yes, class No>
struct Choose {
    using type = Yes;
};
template <class Yes, class No>
struct Choose<false, Yes, No> {
    using type = No;
};

template <class T>
constexpr bool is_float =
    same<T, float> || same<T, double> || same<T, Bfloat16> || same<T, Float16>;

template <class T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
using Vec = typename VectorOf<T, lanes<T>>::type;

template <int Bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
    using type = uint8_t;
};
template <>
struct UnsignedOf<2> {
    using type = uint16_t;
};
template <>
struct UnsignedOf<4> {
    using type = uint32_t;
};
template <>
struct UnsignedOf<8> {
    using type = uint64_t;
};
// The integer that is as wide as T: position codes travel beside the values in lanes of this.
template <class T>
using Code = typename UnsignedOf<sizeof(T)>::type;

template <class To, class From>
POOLKIT_INLINE To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

template <int... I>
struct Sequence {};
template <int N>
using Upto = Sequence<__integer_pack(N)...>;

// --- scalar conversions -------------------------------------------------------------------------

POOLKIT_INLINE float widen(Bfloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

POOLKIT_INLINE float widen(Float16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
    const uint32_t magnitude = x.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
    if (magnitude >= 0x0400u) return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return bit_cast<float>(sign | bit_cast<uint32_t>(subnormal));
}

template <class T>
POOLKIT_INLINE T widen(T x) {
    return x;
}

template <class S, class A>
POOLKIT_INLINE S narrow(A x) {
    if constexpr (same<S, Bfloat16>) {
        const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(x));
        if (x != x) return Bfloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
        return Bfloat16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    } else if constexpr (same<S, Float16>) {
        const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(x));
        const uint32_t sign = (bits >> 16) & 0x8000u;
        const uint32_t magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) {  // NaN: keep the top of the payload, quiet
            const uint32_t payload = (magnitude >> 13) & 0x3ffu;
            return Float16{static_cast<uint16_t>(sign | 0x7e00u | payload)};
        }
        if (magnitude >= 0x477ff000u) return Float16{static_cast<uint16_t>(sign | 0x7c00u)};
        if (magnitude >= 0x38800000u) {
            const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
            return Float16{static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
        }
        // Subnormal: adding 0.5 lets the adder round to a multiple of 2^-24.
        const float shifted = bit_cast<float>(magnitude) + 0.5f;
        return Float16{static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
    } else {
        return static_cast<S>(x);
    }
}

// --- loads and stores ---------------------------------------------------------------------------

// What the machine widens at once the compiler does in halves.
template <class A, class S, class Part>
POOLKIT_INLINE Vec<A> widen_lanes(Part part) {
#if defined(__AVX512F__)
    if constexpr (same<S, int8_t> && same<A, int16_t>)
        return (Vec<A>)_mm512_maskz_cvtepi8_epi16(~__mmask32{0}, (__m256i)part);
    if constexpr (same<S, uint8_t> && same<A, int16_t>)
        return (Vec<A>)_mm512_maskz_cvtepu8_epi16(~__mmask32{0}, (__m256i)part);
    if constexpr (same<S, int8_t> && same<A, int32_t>)
        return (Vec<A>)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)part);
    if constexpr (same<S, uint8_t> && same<A, int32_t>)
        return (Vec<A>)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)part);
    if constexpr (same<S, int16_t> && same<A, int32_t>)
        return (Vec<A>)_mm512_maskz_cvtepi16_epi32(0xffff, (__m256i)part);
#elif defined(__AVX2__)
    if constexpr (same<S, int8_t> && same<A, int16_t>)
        return (Vec<A>)_mm256_cvtepi8_epi16((__m128i)part);
    if constexpr (same<S, uint8_t> && same<A, int16_t>)
        return (Vec<A>)_mm256_cvtepu8_epi16((__m128i)part);
    if constexpr (same<S, int8_t> && same<A, int32_t>)
        return (Vec<A>)_mm256_cvtepi8_epi32(_mm_set_epi64x(0, bit_cast<int64_t>(part)));
    if constexpr (same<S, uint8_t> && same<A, int32_t>)
        return (Vec<A>)_mm256_cvtepu8_epi32(_mm_set_epi64x(0, bit_cast<int64_t>(part)));
    if constexpr (same<S, int16_t> && same<A, int32_t>)
        return (Vec<A>)_mm256_cvtepi16_epi32((__m128i)part);
#endif
    return __builtin_convertvector(part, Vec<A>);
}

// lanes<A> elements of storage S, as vector of A.
template <class A, class S>
POOLKIT_INLINE Vec<A> load(const S* from) {
    constexpr int n = lanes<A>;
    if constexpr (same<A, S>) {
        Vec<A> v;
        memcpy(&v, from, sizeof v);
        return v;
    } else if constexpr (same<S, Bfloat16>) {
        typename VectorOf<uint16_t, n>::type half;
        memcpy(&half, from, sizeof half);
        const Vec<uint32_t> wide = __builtin_convertvector(half, Vec<uint32_t>);
        return (Vec<float>)(wide << 16);
    } else if constexpr (same<S, Float16>) {
#if defined(__AVX512F__)
        return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
        return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
        Vec<float> v;
        for (int i = 0; i < n; ++i) v[i] = widen(from[i]);
        return v;
#endif
    } else {
        typename VectorOf<S, n>::type part;
        memcpy(&part, from, sizeof part);
        return widen_lanes<A, S>(part);
    }
}

template <class A, class S>
POOLKIT_INLINE void store(S* to, Vec<A> v) {
    constexpr int n = lanes<A>;
    if constexpr (same<S, A>) {
        memcpy(to, &v, sizeof v);
    } else if constexpr (same<S, Bfloat16>) {
        const Vec<uint32_t> bits = (Vec<uint32_t>)v;
        const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const Vec<uint32_t> quiet = (bits >> 16) | 0x40u;
        const Vec<uint32_t> chosen = (v != v) ? quiet : rounded;
        const auto half = __builtin_convertvector(chosen, typename VectorOf<uint16_t, n>::type);
        memcpy(to, &half, sizeof half);
    } else if constexpr (same<S, Float16>) {
#if defined(__AVX512F__)
        _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
        _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
        for (int i = 0; i < n; ++i) to[i] = narrow<Float16>(v[i]);
#endif
    } else {
        const auto part = __builtin_convertvector(v, typename VectorOf<S, n>::type);
        memcpy(to, &part, sizeof part);
    }
}

// lanes<C> position codes, as wide as the values that they belong to. The compiler takes a vector
// that it widens more than twice apart, element by element.
template <class C, class P>
POOLKIT_INLINE Vec<C> load_codes(const P* from) {
    if constexpr (same<C, P>) {
        return load<C>(from);
    } else {
#if defined(__AVX512F__)
        if constexpr (same<C, uint32_t> && same<P, uint8_t>)
            return (Vec<C>)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
        if constexpr (same<C, uint64_t> && same<P, uint8_t>)
            return (Vec<C>)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)from));
        if constexpr (same<C, uint64_t> && same<P, uint16_t>)
            return (Vec<C>)_mm512_cvtepu16_epi64(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
        if constexpr (same<C, uint32_t> && same<P, uint8_t>)
            return (Vec<C>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
        if constexpr (same<C, uint64_t> && same<P, uint8_t>)
            return (Vec<C>)_mm256_cvtepu8_epi64(_mm_loadu_si32(from));
        if constexpr (same<C, uint64_t> && same<P, uint16_t>)
            return (Vec<C>)_mm256_cvtepu16_epi64(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__SSE2__)
        if constexpr (same<C, uint32_t> && same<P, uint8_t>) {
            const __m128i bytes = _mm_loadu_si32(from), zero = _mm_setzero_si128();
            return (Vec<C>)_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero);
        }
#endif
        return load<C>(from);
    }
}

// The same back to memory, in a byte each: they are less than 256.
template <class C>
POOLKIT_INLINE void store_bytes(uint8_t* to, Vec<C> codes) {
#if defined(__AVX512F__)
    if constexpr (same<C, uint32_t>)
        return _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)codes));
    if constexpr (same<C, uint64_t>)
        return _mm_storel_epi64((__m128i*)to, _mm512_cvtepi64_epi8((__m512i)codes));
#elif defined(__AVX2__)
    if constexpr (same<C, uint32_t>) {
        const __m128i low = _mm256_castsi256_si128((__m256i)codes);
        const __m128i words = _mm_packus_epi32(low, _mm256_extracti128_si256((__m256i)codes, 1));
        return _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(words, words));
    }
#elif defined(__SSE2__)
    if constexpr (same<C, uint32_t>) {
        const __m128i words = _mm_packs_epi32((__m128i)codes, (__m128i)codes);
        const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(to, &bytes, sizeof bytes);
        return;
    }
#endif
    const auto bytes = __builtin_convertvector(codes, typename VectorOf<uint8_t, lanes<C>>::type);
    memcpy(to, &bytes, sizeof bytes);
}

template <class A>
POOLKIT_INLINE Vec<A> broadcast(A value) {
    return value - Vec<A>{};  // x - 0 is x for every x, -0.0 and NaN too
}

// acc, which holds no -0.0, and what `from` adds to it in the lanes whose code is `meant`.
template <class A, class S, class P>
POOLKIT_INLINE Vec<A> add_where(Vec<A> acc, const P* codes, Code<A> meant, const S* from) {
#if defined(__AVX512F__)
    // Bytes compared are a mask at once. Measured: 3x3, stride 1, ns an input: 1.24 widened, 0.85
    // so.
    if constexpr (same<A, float> && same<P, uint8_t>) {
        const __m128i bytes = _mm_loadu_si128((const __m128i*)codes);
        const __mmask16 mask = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(meant)));
        return (Vec<A>)_mm512_mask_add_ps((__m512)acc, mask, (__m512)acc, (__m512)load<A>(from));
    }
#endif
    const auto mask = load_codes<Code<A>>(codes) == broadcast<Code<A>>(meant);
    return acc + (mask ? load<A>(from) : Vec<A>{});
}

// The first n elements (n < lanes), the rest as `fill`.
template <class A, class S>
POOLKIT_INLINE Vec<A> load_first(const S* from, int64_t n, Vec<A> fill) {
#if defined(__AVX512F__)
    const uint64_t mask = (uint64_t{1} << n) - 1;
    if constexpr (same<A, S> && sizeof(A) == 4)
        return (Vec<A>)_mm512_mask_loadu_epi32((__m512i)fill, static_cast<__mmask16>(mask), from);
    if constexpr (same<A, S> && sizeof(A) == 2)
        return (Vec<A>)_mm512_mask_loadu_epi16((__m512i)fill, static_cast<__mmask32>(mask), from);
    if constexpr (same<A, S> && sizeof(A) == 1)
        return (Vec<A>)_mm512_mask_loadu_epi8((__m512i)fill, static_cast<__mmask64>(mask), from);
#elif defined(__AVX2__)
    if constexpr (same<A, float> && same<S, float>) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
        const __m256 first = _mm256_maskload_ps(from, mask);
        return (Vec<A>)_mm256_blendv_ps((__m256)fill, first, _mm256_castsi256_ps(mask));
    }
#endif
    for (int64_t i = 0; i < n; ++i) fill[i] = static_cast<A>(widen(from[i]));
    return fill;
}

// The last n lanes, the others as `fill`.
template <class A, int... I>
POOLKIT_INLINE Vec<A> last_lanes_of(Vec<A> v, int64_t n, Vec<A> fill, Sequence<I...>) {
    const Vec<A> place = {static_cast<A>(I)...};
    return (place >= broadcast<A>(static_cast<A>(lanes<A> - n))) ? v : fill;
}
template <class A>
POOLKIT_INLINE Vec<A> last_lanes(Vec<A> v, int64_t n, Vec<A> fill) {
    return last_lanes_of<A>(v, n, fill, Upto<lanes<A>>{});
}

// Writes the first n lanes only (n < lanes).
template <class A>
POOLKIT_INLINE void store_first(A* to, Vec<A> v, int64_t n) {
#if defined(__AVX512F__)
    const uint64_t mask = (uint64_t{1} << n) - 1;
    if constexpr (sizeof(A) == 4)
        return _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(mask), (__m512i)v);
    if constexpr (sizeof(A) == 2)
        return _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(mask), (__m512i)v);
    if constexpr (sizeof(A) == 1)
        return _mm512_mask_storeu_epi8(to, static_cast<__mmask64>(mask), (__m512i)v);
#elif defined(__AVX2__)
    if constexpr (same<A, float>) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
        _mm256_maskstore_ps(to, mask, (__m256)v);
        return;
    }
#endif
    A lane[lanes<A>];
    memcpy(lane, &v, sizeof v);
    for (int64_t i = 0; i < n; ++i) to[i] = lane[i];
}

// Whether any lane of a comparison's result is true.
template <class M>
POOLKIT_INLINE bool any(M mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(M) == 64) {
        const __m512i bits = (__m512i)mask;
        return _mm512_test_epi64_mask(bits, bits) != 0;
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(M) == 32) return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
    if constexpr (sizeof(M) == 16) return _mm_movemask_epi8((__m128i)mask) != 0;
#endif
    uint64_t words[sizeof(M) / 8], joined = 0;
    memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) joined |= word;
    return joined != 0;
}

// Square roots, correctly rounded on every instruction set.
template <class A>
POOLKIT_INLINE Vec<A> square_root(Vec<A> v) {
#if defined(__AVX512F__)
    if constexpr (same<A, float>) return (Vec<A>)_mm512_sqrt_ps((__m512)v);
    if constexpr (same<A, double>) return (Vec<A>)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
    if constexpr (same<A, float>) return (Vec<A>)_mm256_sqrt_ps((__m256)v);
    if constexpr (same<A, double>) return (Vec<A>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
    if constexpr (same<A, float>) return (Vec<A>)_mm_sqrt_ps((__m128)v);
    if constexpr (same<A, double>) return (Vec<A>)_mm_sqrt_pd((__m128d)v);
#endif
    for (int i = 0; i < lanes<A>; ++i) v[i] = __builtin_sqrt(v[i]);
    return v;
}

// The upper halves of the products.
POOLKIT_INLINE Vec<int16_t> multiply_high(Vec<int16_t> a, Vec<int16_t> b) {
#if defined(__AVX512F__)
    return (Vec<int16_t>)_mm512_mulhi_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Vec<int16_t>)_mm256_mulhi_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Vec<int16_t>)_mm_mulhi_epi16((__m128i)a, (__m128i)b);
#endif
    for (int i = 0; i < lanes<int16_t>; ++i) a[i] = static_cast<int16_t>((a[i] * b[i]) >> 16);
    return a;
}

// Cube roots of lanes that are 0 or normal numbers above it, to 1 unit in the last place: the bits
// divided by three are within 6 % of the root, and three of Newton's steps square that away.
POOLKIT_INLINE Vec<float> cube_root(Vec<float> x) {
    Vec<uint32_t> bits = (Vec<uint32_t>)x;
    for (int i = 0; i < lanes<float>; ++i) bits[i] = bits[i] / 3 + 709921077u;
    Vec<float> y = (Vec<float>)bits;
    for (int step = 0; step < 3; ++step) y = (y + y + x / (y * y)) / broadcast<float>(3.0f);
    return (x > Vec<float>{}) ? y : x;
}

// Remembers whether any value shown was a NaN, or, where it was asked, a -0.0.
template <class A>
struct Watch {
#if defined(__AVX512F__)
    // Masks stay in mask registers: as vectors each would cost a conversion.
    uint32_t seen = 0;
    POOLKIT_INLINE void nan(Vec<A> a, Vec<A> b) {
        if constexpr (same<A, float>)
            seen |= _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q);
        else if constexpr (same<A, double>)
            seen |= _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_UNORD_Q);
    }
    POOLKIT_INLINE void nan_or_minus_zero(Vec<A> a) {
        constexpr int kinds = 0x01 | 0x80 | 0x04;  // quiet NaN, signalling NaN, -0.0
        if constexpr (same<A, float>)
            seen |= _mm512_fpclass_ps_mask((__m512)a, kinds);
        else if constexpr (same<A, double>)
            seen |= _mm512_fpclass_pd_mask((__m512d)a, kinds);
    }
    POOLKIT_INLINE bool found() const { return seen != 0; }
#else
    decltype(Vec<A>{} != Vec<A>{}) seen{};
    POOLKIT_INLINE void nan(Vec<A> a, Vec<A> b) { seen |= (a != a) | (b != b); }
    POOLKIT_INLINE void nan_or_minus_zero(Vec<A> a) {
        const Vec<Code<A>> sign = broadcast<Code<A>>(Code<A>(1) << (8 * sizeof(A) - 1));
        seen |= (a != a) | ((Vec<Code<A>>)a == sign);
    }
    POOLKIT_INLINE bool found() const { return any(seen); }
#endif
};

// --- shuffles -----------------------------------------------------------------------------------

template <class V, int... I>
POOLKIT_INLINE V even_of(V a, V b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V, int... I>
POOLKIT_INLINE V odd_of(V a, V b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
// a and b hold 2 * lanes neighbouring elements: those at even and at odd places.
template <class A>
POOLKIT_INLINE Vec<A> even(Vec<A> a, Vec<A> b) {
    return even_of(a, b, Upto<lanes<A>>{});
}
template <class A>
POOLKIT_INLINE Vec<A> odd(Vec<A> a, Vec<A> b) {
    return odd_of(a, b, Upto<lanes<A>>{});
}

// Of m vectors in a row, the lanes at t, t + Stride, ...: lane j wants element Stride * j + t,
// which vector number (Stride * j + t) / lanes holds.
template <int Stride, int T, int M, class V, int... I>
POOLKIT_INLINE V take_from(V acc, V v, Sequence<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(acc, v,
                                   ((Stride * I + T) / n == M ? n + (Stride * I + T) % n : I)...);
}
template <class A, int Stride, int T, int M = 0>
POOLKIT_INLINE Vec<A> every(const Vec<A>* v, Vec<A> acc = Vec<A>{}) {
    if constexpr (M == Stride)
        return acc;
    else
        return every<A, Stride, T, M + 1>(v, take_from<Stride, T, M>(acc, v[M], Upto<lanes<A>>{}));
}

// Turns as many vectors as they have lanes: lane j of vector i becomes lane i of vector j.
template <class A, int Pairs = lanes<A> / 2>
POOLKIT_INLINE void turn(Vec<A>* v) {
    if constexpr (Pairs > 0) {
        constexpr int half = lanes<A> / 2;
        Vec<A> next[lanes<A>];
#pragma GCC unroll 32
        for (int i = 0; i < half; ++i) {
            next[i] = even<A>(v[2 * i], v[2 * i + 1]);
            next[i + half] = odd<A>(v[2 * i], v[2 * i + 1]);
        }
        turn<A, Pairs / 2>(next);
#pragma GCC unroll 64
        for (int i = 0; i < lanes<A>; ++i) v[i] = next[i];
    }
}

template <int Start, class V, int... I>
POOLKIT_INLINE V zip_of(V a, V b, Sequence<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(a, b, (Start + I / 2 + (I % 2) * n)...);
}
// The inverse: a0 b0 a1 b1 ..., first and second half.
template <class A>
POOLKIT_INLINE Vec<A> zip_first(Vec<A> a, Vec<A> b) {
    return zip_of<0>(a, b, Upto<lanes<A>>{});
}
template <class A>
POOLKIT_INLINE Vec<A> zip_second(Vec<A> a, Vec<A> b) {
    return zip_of<lanes<A> / 2>(a, b, Upto<lanes<A>>{});
}

// Vector number M of what Stride vectors make when their lanes are taken in turn: element e of all
// is lane e / Stride of vector e % Stride.
template <int Stride, int M, int P, class V, int... I>
POOLKIT_INLINE V put_into(V acc, V v, Sequence<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(acc, v,
                                   ((n * M + I) % Stride == P ? n + (n * M + I) / Stride : I)...);
}
template <class A, int Stride, int M>
POOLKIT_INLINE Vec<A> in_turn(const Vec<A>* v) {
    constexpr int n = lanes<A>;
    if constexpr (Stride == 1) {
        return v[0];
    } else if constexpr (Stride == 2) {
        return zip_of<M * n / 2>(v[0], v[1], Upto<n>{});
    } else if constexpr (Stride == 4) {
        const Vec<A> even = zip_of<M / 2 * n / 2>(v[0], v[2], Upto<n>{});
        const Vec<A> odd = zip_of<M / 2 * n / 2>(v[1], v[3], Upto<n>{});
        return zip_of<M % 2 * n / 2>(even, odd, Upto<n>{});
    } else {
        Vec<A> acc = v[0];
        acc = put_into<Stride, M, 0>(acc, v[0], Upto<n>{});
        acc = put_into<Stride, M, 1>(acc, v[1], Upto<n>{});
        return put_into<Stride, M, 2>(acc, v[2], Upto<n>{});
    }
}

template <class V, int... I>
POOLKIT_INLINE V next_of(V a, V b, Sequence<I...>) {
    return __builtin_shufflevector(a, b, (I + 1)...);
}
// a moved down by one lane; the last lane is b's first.
template <class A>
POOLKIT_INLINE Vec<A> next_lanes(Vec<A> a, Vec<A> b) {
    return next_of(a, b, Upto<lanes<A>>{});
}

// Segments of Width lanes of a and then of b, each cut in half: all first halves, all second ones.
template <int Width, bool Second, class V, int... I>
POOLKIT_INLINE V halves_of(V a, V b, Sequence<I...>) {
    return __builtin_shufflevector(
        a, b, ((I / (Width / 2)) * Width + I % (Width / 2) + (Second ? Width / 2 : 0))...);
}

}  // namespace
