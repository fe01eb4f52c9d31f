// Regions of feature maps: what Python calls.
#pragma once

#include <string>

#include "kernels.h"

namespace poolkit {

// `step` is
//
//   average  x -> out, the mean of what each bin sees
//   spread   its adjoint, grad -> out
//   pick     x -> out and codes, the largest; codes may be null
//   scatter  grad and codes -> out, the gradient of a largest
//   take     x and codes -> out, the adjoint of `scatter`
//   move     x and grad -> out, four float64 for each box: the gradient of an integral's limits
//
// Throws std::invalid_argument for a box of no image.
void pool_regions(const std::string& step, const std::string& dtype, Regions regions, int threads);

}  // namespace poolkit
