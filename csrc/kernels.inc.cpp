// The kernels: compiled once per instruction set with POOLKIT_ISA set to its name; see lanes.h for
// why everything is in an anonymous namespace.
//
// Pooling is separable. There is one idea, reduce windows along one axis of (outer, axis, inner),
// in two forms:
//
//   across  the axis is not the fastest in memory: whole lines are merged, lane by lane;
//   within  the axis is contiguous: windows along one line.
//
// Planes of rows are merged down first (`across`, a block of output rows at a time, each input row
// read once), so that one line for each output row is left to be reduced along itself (`within`).
// Where the order of merging shows - a NaN, a -0.0, positions - rows come first: "the first of
// equal values in row-major order wins" is then a matter of merging in order. What a later row
// sees again is kept in a ring: the intermediate never leaves the L1 cache. pooling.h has the walks
// for every layout.
//
// Results have the same bits on every instruction set: lanes of a vector are separate outputs,
// and where one output is summed by several lanes, their number is that of 64 bytes everywhere.

#include "activations.h"
#include "gather.h"
#include "keys.h"
#include "pooling.h"
#include "registry.def"
#include "scatter.h"
#include "spread.h"
#include "stripes.h"

namespace {

template <class R, class S, class O>
constexpr poolkit::Kernel kernel(const char* reduction, const char* dtype, const char* result) {
    if constexpr (R::template accepts<S>) {
        using A = typename R::template Accumulator<S>;
        if constexpr (R::positions && has_keys<S>)
            return {reduction,
                    dtype,
                    result,
                    count_tasks,
                    scratch_by_keys<R, S>,
                    forward_by_keys<R, S>,
                    forward_positions<R, S, A, O>};
        else
            return {reduction,
                    dtype,
                    result,
                    count_tasks,
                    scratch_bytes<R, S, A, O>,
                    forward<R, S, A, O>,
                    R::positions ? forward_positions<R, S, A, O> : nullptr};
    } else {
        return {};
    }
}

// The results of integers are floats.
template <class R, class S>
constexpr poolkit::Kernel whole_kernel(const char* reduction, const char* dtype) {
    using O = typename Choose<is_float<S>, S, float>::type;
    if constexpr (R::template accepts<S>)
        return {reduction,
                dtype,
                is_float<S> ? dtype : "float32",
                count_gather_tasks,
                gather_scratch<R, S, O>,
                gather<R, S, O>,
                nullptr};
    else
        return {};
}

template <class S>
constexpr poolkit::Gradient scatter_row(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype, count_gradient_tasks, scatter_scratch<S>, scatter<S>};
    else
        return {};
}
template <class S>
constexpr poolkit::Gradient spread_row(const char* dtype) {
    if constexpr (is_float<S>)
        return {dtype, count_gradient_tasks, spread_scratch<S>, spread<S>};
    else
        return {};
}

template <class Act, class S>
constexpr poolkit::Activation activation(const char* name, const char* dtype) {
    if constexpr (is_float<S>)
        return {name, dtype, activate_line<Act, S>, gradient_line<Act, S>,
                same<Act, ReLU> ? mark_line<S> : nullptr};
    else
        return {};
}

// Integers add up to int64, or, divided by the positions of the window, to a float32 mean.
template <class S>
constexpr bool is_integer = !is_float<S>;
template <class R, class S>
using Result = typename Choose<same<R, Sum> && is_integer<S>, int64_t, S>::type;
template <class R, class S>
using IntegerMean = typename Choose<same<R, Sum> && is_integer<S>, Sum, SumAbs>::type;

#define POOLKIT_KERNEL(NAME, R, DTYPE, S) \
    kernel<R, S, Result<R, S>>(#NAME, #DTYPE, same<Result<R, S>, S> ? #DTYPE : "int64"),
#define POOLKIT_MEAN(NAME, R, DTYPE, S)                                                         \
    same<R, Sum>&&is_integer<S> ? kernel<IntegerMean<R, S>, S, float>(#NAME, #DTYPE, "float32") \
                                : poolkit::Kernel{},
#define POOLKIT_ROWS(NAME, R) \
    POOLKIT_DTYPES(POOLKIT_KERNEL, NAME, R) POOLKIT_DTYPES(POOLKIT_MEAN, NAME, R)
#define POOLKIT_WHOLE_KERNEL(NAME, R, DTYPE, S) whole_kernel<R, S>(#NAME, #DTYPE),
#define POOLKIT_WHOLE_ROWS(NAME, R) POOLKIT_DTYPES(POOLKIT_WHOLE_KERNEL, NAME, R)
#define POOLKIT_SCATTER(UNUSED, DTYPE, S) scatter_row<S>(#DTYPE),
#define POOLKIT_SPREAD(UNUSED, DTYPE, S) spread_row<S>(#DTYPE),

#define POOLKIT_ACTIVATION(NAME, ACT, DTYPE, S) activation<ACT, S>(#NAME, #DTYPE),
#define POOLKIT_ACTIVATION_ROWS(NAME, ACT) POOLKIT_DTYPES(POOLKIT_ACTIVATION, NAME, ACT)

// Rows without a name are combinations that do not exist.
constexpr poolkit::Kernel kKernels[] = {POOLKIT_REDUCTIONS(POOLKIT_ROWS)
                                            POOLKIT_WHOLE_REDUCTIONS(POOLKIT_WHOLE_ROWS)};
constexpr poolkit::Gradient kScatters[] = {POOLKIT_DTYPES(POOLKIT_SCATTER, )};
constexpr poolkit::Gradient kSpreads[] = {POOLKIT_DTYPES(POOLKIT_SPREAD, )};
constexpr poolkit::Activation kActivations[] = {POOLKIT_ACTIVATIONS(POOLKIT_ACTIVATION_ROWS)};

#define POOLKIT_STRING(x) #x
#define POOLKIT_NAME(x) POOLKIT_STRING(x)
#define POOLKIT_JOIN(a, b) a##b
#define POOLKIT_SYMBOL(isa) POOLKIT_JOIN(poolkit_table_, isa)
#define POOLKIT_BAG_SYMBOL(isa) POOLKIT_JOIN(poolkit_bags_, isa)
#define POOLKIT_REGION_SYMBOL(isa) POOLKIT_JOIN(poolkit_regions_, isa)

}  // namespace

extern "C" const poolkit::BagTable POOLKIT_BAG_SYMBOL(POOLKIT_ISA);        // bags.inc.cpp
extern "C" const poolkit::RegionTable POOLKIT_REGION_SYMBOL(POOLKIT_ISA);  // regions.inc.cpp

extern "C" const poolkit::Table POOLKIT_SYMBOL(POOLKIT_ISA);
extern "C" const poolkit::Table POOLKIT_SYMBOL(POOLKIT_ISA) = {
    POOLKIT_NAME(POOLKIT_ISA),
    kKernels,
    sizeof kKernels / sizeof kKernels[0],
    kScatters,
    kSpreads,
    sizeof kScatters / sizeof kScatters[0],
    kActivations,
    sizeof kActivations / sizeof kActivations[0],
    stripe_of,
    &POOLKIT_BAG_SYMBOL(POOLKIT_ISA),
    &POOLKIT_REGION_SYMBOL(POOLKIT_ISA)};
