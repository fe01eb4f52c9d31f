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
         double second, std::vector<AxisSpec> axes);
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    void forward(const void* x, void* out, void* positions, int64_t outer, int64_t inner,
                 int threads) const;
    // The gradient of max and min: (grad_out, positions) -> grad_in.
    void scatter(const void* grad, const void* positions, void* out, int64_t outer, int64_t inner,
                 int threads) const;
    // Position codes -> flat spatial positions.
    void indices(const void* positions, int64_t* out, int64_t outer, int64_t inner,
                 int threads) const;
    int position_bytes() const;

  private:
    struct OwnedAxis {
        AxisSpec spec;
        std::vector<int64_t> transposed_begin, transposed_count;
        int64_t transposed_step;
    };

    int64_t bytes_moved(int64_t outer, int64_t inner) const;

    std::string reduction_, dtype_, result_;
    mutable std::vector<OwnedAxis>
        owned_;  // as given; transposed when the gradient is first asked for
    std::vector<OwnedAxis> simplified_;  // the same with trivial axes removed
    mutable Geometry geometry_;
    mutable std::once_flag transposed_;
    Geometry simple_;
    int64_t outer_scale_ = 1, inner_scale_ = 1;  // elements of the axes removed in front and behind
    int64_t element_bytes_;
};

}  // namespace poolkit
