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

// The most cells (of a mean) or samples (of a maximum) that all bins of a box see along an axis. A
// box that lies far beyond the map takes no memory for it.
int64_t room_for(const Regions& r, int axis, bool samples) {
    const double size = static_cast<double>(axis ? r.width : r.height);
    const double bins = static_cast<double>(axis ? r.columns : r.rows);
    // A bin shares two cells at most with the one before it, and by rounding one more.
    if (!samples || r.rule == Rule::cells) return static_cast<int64_t>(size + 3 * bins);
    double most = 0;
    for (int64_t box = 0; box < r.boxes; ++box) {
        const double extent = std::abs(r.place[4 * box + 2 + axis]);
        const double grid = static_cast<double>(r.grid[2 * box + axis]);
        double seen = bins * grid;
        if (extent > 0) seen = std::min(seen, (size + 1) * grid / extent + bins + 2);
        most = std::max(most, std::ceil(seen));
    }
    return static_cast<int64_t>(most) * (r.rule == Rule::corners ? 2 : 1);
}

// Boxes by image: those of image n are order[begin[n]] up to begin[n + 1].
struct ByImage {
    std::vector<int64_t> order, begin;

    explicit ByImage(const Regions& r) : order(r.boxes), begin(r.images + 1, 0) {
        for (int64_t box = 0; box < r.boxes; ++box) {
            if (r.image[box] < 0 || r.image[box] >= r.images)
                throw std::invalid_argument("a box of no image");
            ++begin[r.image[box] + 1];
        }
        for (int64_t image = 0; image < r.images; ++image) begin[image + 1] += begin[image];
        std::vector<int64_t> next(begin.begin(), begin.end() - 1);
        for (int64_t box = 0; box < r.boxes; ++box) order[next[r.image[box]]++] = box;
    }
};

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
    const ByImage by_image(r);
    r.order = by_image.order.data();
    r.begin = by_image.begin.data();
    const bool backward = step == "spread" || step == "scatter";
    const bool samples = step == "pick" || step == "scatter" || step == "take";
    for (int axis = 0; axis < 2; ++axis) r.room[axis] = room_for(r, axis, samples);
    r.together = r.vectors = 1;

    const int64_t size = dtype == "float64" ? 8 : dtype == "float32" ? 4 : 2;
    const int64_t pixels = r.height * r.width, bins = r.rows * r.columns;
    const int64_t groups = (r.channels + kernels.lanes - 1) / kernels.lanes;
    int64_t tasks = r.boxes;
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
