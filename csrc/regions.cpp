#include "regions.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "parallel.h"

namespace poolkit {
namespace {

const RegionKernels& kernels_for(const std::string& dtype) {
    const RegionTable& from = *table().regions;
    for (int i = 0; i < from.count; ++i)
        if (from.kernels[i].dtype && dtype == from.kernels[i].dtype) return from.kernels[i];
    throw std::invalid_argument("no such kernel");
}

const RegionKernels::Step& step_of(const RegionKernels& kernels, const std::string& step) {
    if (step == "average") return kernels.average;
    if (step == "spread") return kernels.spread;
    if (step == "pick") return kernels.pick;
    if (step == "scatter") return kernels.scatter;
    if (step == "take") return kernels.take;
    if (step == "move") return kernels.move;
    throw std::invalid_argument("no such step");
}

// The most cells (of a mean) or samples (of a maximum) that a bin of any box sees along an axis. A
// box that lies far beyond the map takes no memory for it.
int64_t most_of(const Regions& r, int axis, bool samples) {
    const int64_t size = axis ? r.width : r.height, bins = axis ? r.columns : r.rows;
    double most = 1;
    for (int64_t box = 0; box < r.boxes; ++box) {
        const double extent = std::abs(r.place[4 * box + 2 + axis]);
        const double grid = static_cast<double>(r.grid[2 * box + axis]);
        if (r.bins == Bins::cells || r.bins == Bins::integral) {
            most = std::max(
                most, std::min(extent / static_cast<double>(bins) + 4, static_cast<double>(size)));
            continue;
        }
        double seen = grid;
        if (extent > 0) seen = std::min(seen, static_cast<double>(size + 1) * grid / extent + 6);
        if (!samples) seen = std::min(2 * seen, static_cast<double>(size));
        most = std::max(most, seen);
    }
    return static_cast<int64_t>(std::ceil(most)) * (samples && r.bins == Bins::corners ? 2 : 1);
}

// Planes of a gradient that are filled beside each other, so that what is known of a box serves
// more channels, while they stay in the second level of the cache.
constexpr int64_t kPlanes = 4;
constexpr int64_t kPlaneBytes = 1 << 20;
// Of what is known of boxes at a time, in the same cache.
constexpr int64_t kPlacedBytes = 1 << 18;

}  // namespace

void pool_regions(const std::string& step, const std::string& dtype, Regions r, int threads) {
    const RegionKernels& kernels = kernels_for(dtype);
    const RegionKernels::Step& run = step_of(kernels, step);
    for (int64_t box = 0; box < r.boxes; ++box)
        if (r.image[box] < 0 || r.image[box] >= r.images)
            throw std::invalid_argument("a box of no image");
    const bool backward = step == "spread" || step == "scatter";
    const bool samples = step == "pick" || step == "scatter" || step == "take";
    for (int axis = 0; axis < 2; ++axis) r.most[axis] = most_of(r, axis, samples);

    const int64_t size = dtype == "float64" ? 8 : dtype == "float32" ? 4 : 2;
    const int64_t pixels = r.height * r.width, bins = r.rows * r.columns;
    const int64_t groups = (r.channels + kernels.lanes - 1) / kernels.lanes;
    std::vector<int64_t> begin(r.images + 1, 0), order(r.boxes);
    for (int64_t box = 0; box < r.boxes; ++box) ++begin[r.image[box] + 1];
    for (int64_t image = 0; image < r.images; ++image) begin[image + 1] += begin[image];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t box = 0; box < r.boxes; ++box) order[next[r.image[box]]++] = box;

    int64_t tasks = r.boxes;
    r.together = r.vectors = 1;
    if (backward) {
        const int64_t fit = kPlaneBytes / std::max<int64_t>(pixels * 64, 1);
        const int64_t share = r.images * groups / std::max(2 * threads, 1);
        r.vectors = std::clamp<int64_t>(std::min(fit, share), 1, kPlanes);
        tasks = r.images * ((groups + r.vectors - 1) / r.vectors);
        ask_for_huge_pages(r.out, r.images * r.channels * pixels * size);
    } else if (step != "move") {
        r.together = std::clamp<int64_t>(r.boxes * groups / std::max(4 * threads, 1), 1, kTogether);
        while (r.together > 1 && run.scratch_bytes(r) > kPlacedBytes) r.together /= 2;
        tasks = (r.boxes + r.together - 1) / r.together * groups;
        ask_for_huge_pages(r.out, r.boxes * r.channels * bins * size);
    }
    if (tasks == 0) return;
    r.order = order.data();
    r.begin = begin.data();
    const int64_t work = (r.boxes * bins * 4 + (backward ? r.images * pixels : 0)) * r.channels;
    parallel_for(tasks, threads, work * size, run.scratch_bytes(r),
                 [&](int64_t first, int64_t last, void* scratch) {
                     Regions part = r;
                     part.first = first;
                     part.last = last;
                     part.scratch = scratch;
                     run.run(part);
                 });
}

}  // namespace poolkit
