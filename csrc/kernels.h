// What the kernels and their callers agree on: plain structs and function pointers, compiled into
// every instruction set's object file, so nothing here may emit code.
#pragma once

#include <cstdint>

namespace poolkit {

constexpr int kMaxAxes = 3;

// One axis of a window over an input. Output o sees begin[o] + t * step for t < count[o], all of
// it inside the input.
struct Axis {
    int64_t size;
    int64_t outputs;
    const int64_t* begin;
    const int64_t* count;
    int64_t step;
    int64_t taps;  // the most positions that any output sees; the radix of position codes

    // Whether the windows are those of a sliding window, clipped to the input: they would begin at
    // o * stride + offset and see `taps` positions. Outputs [full_begin, full_end) are not clipped.
    bool regular;
    int64_t stride, offset;
    int64_t full_begin, full_end;

    bool disjoint;  // no input position is seen by two outputs

    const double* divisor;  // one for each output, or null; a mean divides by the product
    bool divisor_uniform;

    // The transpose: outputs transposed_begin[i] + j * transposed_step, j < transposed_count[i],
    // see input i.
    const int64_t* transposed_begin;
    const int64_t* transposed_count;
    int64_t transposed_step;
};

struct Geometry {
    int axes;
    Axis axis[kMaxAxes];
    double exponent;    // of a norm; the parameter of a reduction that needs whole windows
    double second;      // its other one
    int64_t positions;  // the product of the taps: how many position codes there are
};

// One call's part for one thread: tasks [first, last) of count_tasks().
struct Part {
    const void* x;
    void* out;
    void* positions;  // one code for each output (1, 2 or 4 bytes), or null
    int64_t outer, inner;
    int64_t first, last;
    void* scratch;
};

struct Kernel {
    const char* reduction;
    const char* dtype;
    const char* result;
    int64_t (*count_tasks)(const Geometry&, int64_t outer, int64_t inner);
    int64_t (*scratch_bytes)(const Geometry&, int64_t inner, bool positions);
    void (*forward)(const Geometry&, const Part&);
    void (*forward_positions)(const Geometry&, const Part&);  // null if there are none
};

// The gradient of max and min: x holds the output's gradient, out receives the input's.
struct Scatter {
    const char* dtype;
    int64_t (*count_tasks)(const Geometry&, int64_t outer, int64_t inner);
    int64_t (*scratch_bytes)(const Geometry&, int64_t inner);
    void (*scatter)(const Geometry&, const Part&);
};

struct Table {
    const char* isa;
    const Kernel* kernels;
    int kernel_count;
    const Scatter* scatters;
    int scatter_count;
};

}  // namespace poolkit
