// What the kernels and their callers agree on: plain structs and function pointers, compiled into
// every instruction set's object file, so nothing here may emit code.
#pragma once

#include <cstdint>

namespace poolkit {

constexpr int kMaxAxes = 3;
// Where the position code lies that ends a gradient: outside of every input.
constexpr int64_t kNowhere = -(int64_t{1} << 62);

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
    int64_t transposed_most;  // outputs that see any one input
};

enum class Rounding : int32_t { half_even, half_away, half_up, floor, trunc };

// From sums in steps of `scale` to means in steps of `out_scale`.
struct Requantization {
    double ratio;                     // scale / out_scale
    uint64_t mantissa, out_mantissa;  // of the two scales, whole numbers of 53 bits,
    int32_t shift;                    // and the exponent of the one less that of the other
    int32_t out_zero_point;
    Rounding rounding;
    double largest;  // no sum is larger
};

struct Geometry {
    int axes;
    Axis axis[kMaxAxes];
    // Of a norm; for quantized values their zero point; the parameter of a reduction that needs
    // whole windows, which may have a second one.
    double exponent, second;
    int64_t positions;  // how many position codes there are: the product of the taps, or one more
    Requantization requantization;
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

// A gradient: x holds the output's, out receives the input's.
struct Gradient {
    const char* dtype;
    int64_t (*count_tasks)(const Geometry&, int64_t outer, int64_t inner);
    int64_t (*scratch_bytes)(const Geometry&, int64_t inner);
    void (*run)(const Geometry&, const Part&);
};

// An activation: elementwise, on `n` elements of one dtype.
struct Activation {
    const char* name;
    const char* dtype;
    void (*activate)(const void* x, void* out, int64_t n, double parameter);
    // grad becomes what comes back through the activation at x.
    void (*gradient)(void* grad, const void* x, int64_t n, double parameter);
    // Where a value is 0 or below, its position code (of 1, 2 or 4 bytes) becomes `code`; null for
    // activations whose gradient does not end there.
    void (*mark)(const void* values, void* codes, int64_t n, int64_t code, int bytes);
};

// What some neighbouring tasks read and write, in elements: `rows` runs of `columns` inputs,
// `pitch` apart, and one run of outputs.
struct Stripe {
    int64_t in, rows, columns, pitch;
    int64_t out, outputs;
};

// Bags: for each, rows of a table that are named by `count` entries of an index from `begin` on.
struct Bags {
    const void* table;     // (rows, width)
    const void* other;     // (bags, width), for inner products
    const int64_t* index;  // one row for each entry, or null: entry e is row e
    const int64_t *begin, *count;
    int64_t bags, width;
    int64_t entries;       // of the index
    const void* weights;   // one for each entry, in float32 or float64, or null
    const void* divisors;  // one for each bag, the same, or null
    double parameter;
    void* out;
    int32_t* codes;       // which entry of its bag each value is from, or null
    int64_t first, last;  // one thread's part: bags, or columns
};

struct BagKernels {
    const char* dtype;
    void (*sum)(const Bags&);
    void (*max)(const Bags&);
    void (*min)(const Bags&);
    void (*soft)(const Bags&);
    void (*products)(const Bags&);  // (entries), in float32 or float64
    void (*scatter)(const Bags&);   // table: the gradient; columns [first, last) of all bags
};

struct BagTable {
    const BagKernels* kernels;
    int count;
};

// What the bins of a box see of a map: bilinear samples; the corners of those, each with its
// weight; whole cells; or the integral of the bilinear interpolation.
enum class Rule : int32_t { samples, corners, cells, integral };

// The most boxes that are pooled together, in one vector of channels after the other.
constexpr int64_t kTogether = 32;

// Boxes over maps, and the bins of each box.
struct Regions {
    Rule rule;
    bool channels_last;  // all arrays of channels: (..., channels), or (channels, ...) each
    int64_t images, channels, height, width;
    int64_t boxes, rows, columns;
    const int64_t* image;  // of each box
    const double* place;   // y, x, and height and width of a bin (samples) or of the box, in cells
    const int64_t* grid;   // samples of a bin down and along
    const void* x;
    const void* grad;
    void* out;
    void* codes;  // of 1, 2 or 4 bytes
    int code_bytes;
    int64_t nowhere;  // the code of no sample

    // Filled in by pool_regions.
    int64_t room[2];               // for what all bins of a box see down and along (bins.h)
    const int64_t *order, *begin;  // the boxes of image n are order[begin[n]] up to begin[n + 1]
    int64_t vectors;               // of channels at a time, for a gradient
    int64_t together;              // boxes at a time, for values
    int64_t first, last;           // one thread's part
    void* scratch;
};

struct RegionKernels {
    struct Step {
        int64_t (*scratch_bytes)(const Regions&);
        void (*run)(const Regions&);
    };
    const char* dtype;
    int lanes;  // channels in one vector
    // See regions.h. A task is one vector of channels of `together` boxes; for spread and scatter
    // `vectors` of them of one image; and for move one box.
    Step average, spread, pick, scatter, take, move;
};

struct RegionTable {
    const RegionKernels* kernels;
    int count;
};

struct Table {
    const char* isa;
    const Kernel* kernels;
    int kernel_count;
    const Gradient* scatters;  // of max and min
    const Gradient* spreads;   // of sums and means
    int gradient_count;        // of each
    const Activation* activations;
    int activation_count;
    Stripe (*stripe_of)(const Geometry&, int64_t inner, int64_t first, int64_t last);
    const BagTable* bags;
    const RegionTable* regions;
};

}  // namespace poolkit
