#include "bags.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "parallel.h"

namespace poolkit {
namespace {

const BagKernels& kernels_for(const std::string& dtype) {
    const BagTable& from = *table().bags;
    for (int i = 0; i < from.count; ++i)
        if (from.kernels[i].dtype && dtype == from.kernels[i].dtype) return from.kernels[i];
    throw std::invalid_argument("no such kernel");
}

// A thread takes bags of as many rows as the others, whatever their lengths: parts of this many
// for each.
constexpr int kParts = 8;

// Where each of `parts` parts of like work ends; a bag and each of its rows are 1.
std::vector<int64_t> even_parts(const Bags& bags, int64_t work, int64_t parts) {
    std::vector<int64_t> ends;
    int64_t done = 0;
    for (int64_t b = 0; b < bags.bags; ++b) {
        done += 1 + bags.count[b];
        while (static_cast<int64_t>(ends.size()) + 1 < parts &&
               done * parts >= work * (static_cast<int64_t>(ends.size()) + 1))
            ends.push_back(b + 1);
    }
    while (static_cast<int64_t>(ends.size()) < parts) ends.push_back(bags.bags);
    return ends;
}

}  // namespace

void pool_bags(const std::string& reduction, const std::string& dtype, const Bags& bags,
               int threads) {
    const BagKernels& kernels = kernels_for(dtype);
    const auto run = reduction == "sum"        ? kernels.sum
                     : reduction == "max"      ? kernels.max
                     : reduction == "min"      ? kernels.min
                     : reduction == "soft"     ? kernels.soft
                     : reduction == "products" ? kernels.products
                                               : nullptr;
    if (!run) throw std::invalid_argument("no such kernel");
    if (bags.bags == 0 || bags.width == 0) return;
    if (reduction != "products") {
        const int64_t size = dtype == "float64" ? 8 : dtype == "float32" ? 4 : 2;
        ask_for_huge_pages(bags.out, bags.bags * bags.width * size);
        if (bags.codes) ask_for_huge_pages(bags.codes, bags.bags * bags.width * 4);
    }
    int64_t work = bags.bags;
    for (int64_t b = 0; b < bags.bags; ++b) work += bags.count[b];
    const int64_t parts = std::min<int64_t>(bags.bags, int64_t{kParts} * std::max(threads, 1));
    const std::vector<int64_t> ends = even_parts(bags, work, threads > 1 ? parts : 1);
    parallel_for(static_cast<int64_t>(ends.size()), threads, work * bags.width * 4, 0,
                 [&](int64_t first, int64_t last, void*) {
                     if (first == last) return;
                     Bags part = bags;
                     part.first = first ? ends[first - 1] : 0;
                     part.last = ends[last - 1];
                     run(part);
                 });
}

void scatter_bags(const std::string& dtype, const Bags& bags, int threads) {
    const auto run = kernels_for(dtype).scatter;
    if (!run) throw std::invalid_argument("no such kernel");
    constexpr int64_t block = 16;  // columns: no two threads write to one line of the cache
    parallel_for((bags.width + block - 1) / block, threads, bags.bags * bags.width * 8, 0,
                 [&](int64_t first, int64_t last, void*) {
                     Bags part = bags;
                     part.first = first * block;
                     part.last = std::min(last * block, bags.width);
                     run(part);
                 });
}

void transpose_bags(const Bags& bags, int64_t rows, int64_t* begin_of, int64_t* count_of,
                    int64_t* entry, int64_t* bag) {
    const auto row_of = [&](int64_t e) { return bags.index ? bags.index[e] : e; };
    std::fill(count_of, count_of + rows, 0);
    for (int64_t b = 0; b < bags.bags; ++b)
        for (int64_t e = bags.begin[b]; e < bags.begin[b] + bags.count[b]; ++e)
            ++count_of[row_of(e)];
    int64_t sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
        begin_of[r] = sum;
        sum += count_of[r];
    }
    for (int64_t b = 0; b < bags.bags; ++b)
        for (int64_t e = bags.begin[b]; e < bags.begin[b] + bags.count[b]; ++e) {
            const int64_t at = begin_of[row_of(e)]++;
            entry[at] = e;
            bag[at] = b;
        }
    for (int64_t r = 0; r < rows; ++r) begin_of[r] -= count_of[r];
}

}  // namespace poolkit
