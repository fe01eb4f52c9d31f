// Bags of rows: what Python calls.
#pragma once

#include <string>

#include "kernels.h"

namespace poolkit {

// `reduction` is sum, max, min, soft, or products, which is no reduction: the inner product of each
// row of a bag with the bag's own row in `bags.other`.
void pool_bags(const std::string& reduction, const std::string& dtype, const Bags& bags,
               int threads);

// The gradient of a max or min, added to `out`, which is float32 or float64.
void scatter_bags(const std::string& dtype, const Bags& bags, int threads);

// Which bags see each row of the table: row r by entries begin_of[r] ... of `entry` (the entries of
// the index) and `bag` (their bags), in order of the bags.
void transpose_bags(const Bags& bags, int64_t rows, int64_t* begin_of, int64_t* count_of,
                    int64_t* entry, int64_t* bag);

}  // namespace poolkit
