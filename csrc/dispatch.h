// Which instruction set runs, and the plan that Python holds.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"

namespace poolkit {

const Table& table();
std::vector<std::string> available_isas();
bool use_isa(const std::string& name);
bool has_kernel(const std::string& reduction, const std::string& dtype, const std::string& result);
bool has_activation(const std::string& name, const std::string& dtype);

// grad becomes what comes back through the activation at x: two arrays of n elements.
void activation_gradient(const std::string& name, const std::string& dtype, double parameter,
                         void* grad, const void* x, int64_t n, int threads);

// An activation and where it goes: in front of the pooling, or behind a max or min.
struct ActivationSpec {
    std::string name;  // empty for none
    double parameter;
    bool behind;
};

struct AxisSpec {
    int64_t size;
    std::vector<int64_t> begin, count;
    int64_t step;
    std::vector<double> divisor;
};

// The geometry of one window over one spatial shape, and the kernel's name.
class Plan {
  public:
    static constexpr int64_t kMaxPositions = int64_t{1} << 32;

    Plan(std::string reduction, std::string dtype, std::string result, double exponent,
         double second, std::vector<AxisSpec> axes, ActivationSpec activation = {});
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    // For a kernel of quantized values: from steps of `scale` to steps of `out_scale`. The zero
    // point of the input is the exponent.
    void requantize(double scale, double out_scale, int out_zero_point,
                    const std::string& rounding);
    // With the activation, if there is one. One behind the pooling that ends gradients marks the
    // positions where it did with a code of their own.
    void forward(const void* x, void* out, void* positions, int64_t outer, int64_t inner,
                 int threads) const;
    // With the activation in front: positions are those of the activated values.
    void forward_ahead(const void* x, void* out, void* positions, int64_t outer, int64_t inner,
                       int threads) const;
    // A window that changes no size, `levels` times over: each channel of each image with its
    // results behind each other, (images, (1 + levels) * channels, ...). A plane stays in cache.
    void chain(const void* x, void* out, int64_t images, int64_t channels, int64_t levels,
               int threads) const;
    // The gradient of max and min: (grad_out, positions) -> grad_in.
    void scatter(const void* grad, const void* positions, void* out, int64_t outer, int64_t inner,
                 int threads) const;
    // The gradient of a sum or a mean, grad_out -> grad_in; false where each input is seen by so
    // many outputs that a sum over the transposed window, which is a window too, is faster.
    bool spread(const void* grad, void* out, int64_t outer, int64_t inner, int threads) const;
    // Position codes -> flat spatial positions; one below 0 for the code of a gradient's end.
    void indices(const void* positions, int64_t* out, int64_t outer, int64_t inner,
                 int threads) const;
    int position_bytes() const;

  private:
    struct OwnedAxis {
        AxisSpec spec;
        std::vector<int64_t> transposed_begin, transposed_count;
        int64_t transposed_step, transposed_most;
    };
    static constexpr int64_t kMostSpread = 16;  // see `spread`

    void transpose_once() const;
    void run_gradient(const Gradient* kernels, const void* grad, const void* positions, void* out,
                      int64_t outer, int64_t inner, int threads) const;
    enum class Apply { nothing, ahead, behind };

    int64_t bytes_moved(int64_t outer, int64_t inner) const;
    void run(Apply apply, const void* x, void* out, void* positions, int64_t outer, int64_t inner,
             int threads) const;

    std::string reduction_, dtype_, result_;
    ActivationSpec activation_;
    mutable std::vector<OwnedAxis>
        owned_;  // as given; transposed when the gradient is first asked for
    std::vector<OwnedAxis> simplified_;  // the same with trivial axes removed
    mutable Geometry geometry_;
    mutable std::once_flag transposed_;
    Geometry simple_;
    // Behind the codes of all positions: no position, the gradient ends here.
    int64_t dead_code_ = 0;
    int64_t outer_scale_ = 1, inner_scale_ = 1;  // elements of the axes removed in front and behind
    int64_t element_bytes_;
};

}  // namespace poolkit
