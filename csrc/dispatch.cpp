#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "parallel.h"

extern "C" {
extern const poolkit::Table poolkit_table_baseline;
extern const poolkit::Table poolkit_table_avx2;
extern const poolkit::Table poolkit_table_avx512;
}

namespace poolkit {
namespace {

struct Isa {
    const Table* table;
    bool (*supported)();
};

// Best first. A new instruction set is a row here and one in CMakeLists.txt.
const Isa kIsas[] = {
#ifdef POOLKIT_HAS_avx512
    {&poolkit_table_avx512,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
#endif
#ifdef POOLKIT_HAS_avx2
    {&poolkit_table_avx2,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }},
#endif
#ifdef POOLKIT_HAS_baseline
    {&poolkit_table_baseline, [] { return true; }},
#endif
};

const Table* find_isa(const char* name) {
    for (const Isa& isa : kIsas)
        if (isa.supported() && (!name || !std::strcmp(name, isa.table->isa))) return isa.table;
    return nullptr;
}

const Table* first_choice() {
    const char* forced = std::getenv("POOLKIT_ISA");
    const Table* chosen = forced && *forced ? find_isa(forced) : nullptr;
    return chosen ? chosen : find_isa(nullptr);
}

std::atomic<const Table*>& current() {
    static std::atomic<const Table*> chosen{first_choice()};
    return chosen;
}

const Kernel* find_kernel(const Table& from, const std::string& reduction, const std::string& dtype,
                          const std::string& result) {
    for (int i = 0; i < from.kernel_count; ++i) {
        const Kernel& kernel = from.kernels[i];
        if (kernel.reduction && reduction == kernel.reduction && dtype == kernel.dtype &&
            result == kernel.result)
            return &kernel;
    }
    return nullptr;
}

int64_t size_of(const std::string& dtype) {
    if (dtype.find("64") != std::string::npos) return 8;
    if (dtype.find("32") != std::string::npos) return 4;
    if (dtype.find("16") != std::string::npos) return 2;
    return 1;
}

// Finds stride and offset if the spans are those of a sliding window clipped to the input.
void recognise(Axis& axis) {
    axis.regular = false;
    axis.stride = 1;
    axis.offset = axis.full_begin = axis.full_end = 0;
    int64_t first = 0;
    while (first < axis.outputs && axis.count[first] != axis.taps) ++first;
    if (first == axis.outputs || axis.taps == 0) return;
    int64_t stride = 1;
    if (axis.outputs > 1) {
        // The next window begins a stride later unless it lies behind the input altogether; the
        // window before, if it is clipped, ends a stride earlier.
        if (first + 1 < axis.outputs && axis.count[first + 1] > 0) {
            stride = axis.begin[first + 1] - axis.begin[first];
        } else if (first > 0 && axis.count[first - 1] > 0) {
            const auto end = [&](int64_t o) { return axis.begin[o] + axis.count[o] * axis.step; };
            stride = end(first) - end(first - 1);
        } else {
            return;
        }
        if (stride < 1) return;
    }
    const int64_t offset = axis.begin[first] - first * stride;
    int64_t full_begin = axis.outputs, full_end = 0;
    for (int64_t o = 0; o < axis.outputs; ++o) {
        const int64_t start = o * stride + offset;
        const int64_t skipped = start < 0 ? (-start + axis.step - 1) / axis.step : 0;
        const int64_t room = axis.size - 1 - start;
        const int64_t end = room < 0 ? 0 : std::min(axis.taps, room / axis.step + 1);
        const int64_t count = std::max<int64_t>(end - skipped, 0);
        if (count != axis.count[o]) return;
        if (count > 0 && axis.begin[o] != start + skipped * axis.step) return;
        if (count == axis.taps) {
            full_begin = std::min(full_begin, o);
            full_end = o + 1;
        }
    }
    axis.regular = true;
    axis.stride = stride;
    axis.offset = offset;
    axis.full_begin = full_begin;
    axis.full_end = full_end;
}

}  // namespace

const Table& table() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas)
        if (isa.supported()) names.push_back(isa.table->isa);
    return names;
}

bool use_isa(const std::string& name) {
    const Table* chosen = find_isa(name.c_str());
    if (chosen) current().store(chosen);
    return chosen != nullptr;
}

bool has_kernel(const std::string& reduction, const std::string& dtype, const std::string& result) {
    return find_kernel(table(), reduction, dtype, result) != nullptr;
}

namespace {

// Whether no input is seen by two outputs, as far as the order of the windows shows it.
bool disjoint(const AxisSpec& spec) {
    int64_t end = 0;
    for (size_t o = 0; o < spec.begin.size(); ++o) {
        if (spec.count[o] == 0) continue;
        if (spec.begin[o] < end) return false;
        end = spec.begin[o] + (spec.count[o] - 1) * spec.step + 1;
    }
    return true;
}

// The outputs that see each input: an arithmetic progression for every input, or an exception.
template <class OwnedAxis>
void transpose(OwnedAxis& axis) {
    const AxisSpec& spec = axis.spec;
    auto &begin = axis.transposed_begin, &count = axis.transposed_count;
    begin.assign(spec.size, 0);
    count.assign(spec.size, 0);
    int64_t step = 0;
    for (int64_t o = 0; o < static_cast<int64_t>(spec.begin.size()); ++o) {
        for (int64_t t = 0; t < spec.count[o]; ++t) {
            const int64_t i = spec.begin[o] + t * spec.step;
            if (count[i] == 0) {
                begin[i] = o;
            } else {
                if (step == 0) step = o - begin[i];
                if (o != begin[i] + count[i] * step)
                    throw std::invalid_argument(
                        "the outputs that see an input of this window are not evenly spaced, so "
                        "max and min have no native gradient; use the composite path");
            }
            ++count[i];
        }
    }
    axis.transposed_step = step ? step : 1;
}

template <class OwnedAxis>
Geometry view_of(std::vector<OwnedAxis>& axes, double exponent, double second) {
    Geometry g{};
    g.axes = static_cast<int>(axes.size());
    g.exponent = exponent;
    g.second = second;
    g.positions = 1;
    for (int a = 0; a < g.axes; ++a) {
        OwnedAxis& from = axes[a];
        Axis& to = g.axis[a];
        to.size = from.spec.size;
        to.outputs = static_cast<int64_t>(from.spec.begin.size());
        to.begin = from.spec.begin.data();
        to.count = from.spec.count.data();
        to.step = from.spec.step;
        to.taps = 0;
        for (int64_t o = 0; o < to.outputs; ++o) to.taps = std::max(to.taps, to.count[o]);
        to.disjoint = disjoint(from.spec);
        const auto& divisor = from.spec.divisor;
        to.divisor = divisor.empty() ? nullptr : divisor.data();
        to.divisor_uniform = std::all_of(divisor.begin(), divisor.end(),
                                         [&](double d) { return d == divisor.front(); });
        recognise(to);
        g.positions *= std::max<int64_t>(to.taps, 1);
    }
    return g;
}

bool covers_all(const AxisSpec& spec) {
    return spec.begin.size() == 1 && spec.step == 1 && spec.begin[0] == 0 &&
           spec.count[0] == spec.size;
}

bool changes_nothing(const AxisSpec& spec) {
    if (static_cast<int64_t>(spec.begin.size()) != spec.size) return false;
    for (int64_t o = 0; o < spec.size; ++o)
        if (spec.begin[o] != o || spec.count[o] != 1) return false;
    return std::all_of(spec.divisor.begin(), spec.divisor.end(), [](double d) { return d == 1.0; });
}

}  // namespace

Plan::Plan(std::string reduction, std::string dtype, std::string result, double exponent,
           double second, std::vector<AxisSpec> axes)
    : reduction_(std::move(reduction)), dtype_(std::move(dtype)), result_(std::move(result)) {
    if (axes.empty() || axes.size() > static_cast<size_t>(kMaxAxes))
        throw std::invalid_argument("a plan has 1 to 3 axes");
    element_bytes_ = size_of(dtype_);
    for (AxisSpec& spec : axes) {
        if (spec.size < 1 || spec.step < 1)
            throw std::invalid_argument("size and step must be at least 1");
        if (spec.begin.size() != spec.count.size())
            throw std::invalid_argument("begin and count differ in length");
        for (size_t o = 0; o < spec.begin.size(); ++o) {
            const int64_t end = spec.begin[o] + (spec.count[o] - 1) * spec.step;
            if (spec.count[o] < 0 || (spec.count[o] > 0 && (spec.begin[o] < 0 || end >= spec.size)))
                throw std::invalid_argument("a span lies outside the input");
        }
        if (!spec.divisor.empty() && spec.divisor.size() != spec.begin.size())
            throw std::invalid_argument("one divisor for each output");
        owned_.push_back(OwnedAxis{std::move(spec), {}, {}, 1});
    }
    geometry_ = view_of(owned_, exponent, second);

    // The same work on fewer axes: a first or last axis that changes nothing is more of what is in
    // front or behind, and neighbouring axes with one window each over all of them are one axis.
    simplified_ = owned_;
    while (simplified_.size() > 1 && changes_nothing(simplified_.front().spec)) {
        outer_scale_ *= simplified_.front().spec.size;
        simplified_.erase(simplified_.begin());
    }
    while (simplified_.size() > 1 && changes_nothing(simplified_.back().spec)) {
        inner_scale_ *= simplified_.back().spec.size;
        simplified_.pop_back();
    }
    for (size_t a = 0; a + 1 < simplified_.size();) {
        AxisSpec& first = simplified_[a].spec;
        AxisSpec& second = simplified_[a + 1].spec;
        if (!covers_all(first) || !covers_all(second)) {
            ++a;
            continue;
        }
        first.size *= second.size;
        first.count[0] = first.size;
        if (!first.divisor.empty()) first.divisor[0] *= second.divisor[0];
        simplified_.erase(simplified_.begin() + a + 1);
    }
    simple_ = view_of(simplified_, exponent, second);
}

int Plan::position_bytes() const {
    return geometry_.positions <= 256 ? 1 : geometry_.positions <= 65536 ? 2 : 4;
}

int64_t Plan::bytes_moved(int64_t outer, int64_t inner) const {
    int64_t in = 1, out = 1;
    for (const OwnedAxis& axis : owned_) {
        in *= axis.spec.size;
        out *= static_cast<int64_t>(axis.spec.begin.size());
    }
    return outer * inner * (in + out) * element_bytes_;
}

void Plan::forward(const void* x, void* out, void* positions, int64_t outer, int64_t inner,
                   int threads) const {
    const Kernel* kernel = find_kernel(table(), reduction_, dtype_, result_);
    if (!kernel || (positions && !kernel->forward_positions))
        throw std::invalid_argument("no such kernel");
    if (positions && geometry_.positions > kMaxPositions)
        throw std::invalid_argument("a window of more than 2^32 positions has no position codes");
    const int64_t slabs = outer * outer_scale_, bytes = bytes_moved(outer, inner);
    inner *= inner_scale_;
    if (slabs == 0 || inner == 0) return;
    for (const OwnedAxis& axis : owned_)
        if (axis.spec.begin.empty()) return;
    const auto run = positions ? kernel->forward_positions : kernel->forward;
    parallel_for(kernel->count_tasks(simple_, slabs, inner), threads, bytes,
                 kernel->scratch_bytes(simple_, inner, positions != nullptr),
                 [&](int64_t first, int64_t last, void* scratch) {
                     run(simple_, Part{x, out, positions, slabs, inner, first, last, scratch});
                 });
}

void Plan::scatter(const void* grad, const void* positions, void* out, int64_t outer, int64_t inner,
                   int threads) const {
    const Table& from = table();
    const Scatter* kernel = nullptr;
    for (int i = 0; i < from.scatter_count; ++i)
        if (from.scatters[i].dtype && dtype_ == from.scatters[i].dtype) kernel = &from.scatters[i];
    if (!kernel) throw std::invalid_argument("no such kernel");
    if (outer == 0 || inner == 0) return;
    std::call_once(transposed_, [this] {
        for (int a = 0; a < geometry_.axes; ++a) {
            OwnedAxis& axis = owned_[a];
            transpose(axis);
            geometry_.axis[a].transposed_begin = axis.transposed_begin.data();
            geometry_.axis[a].transposed_count = axis.transposed_count.data();
            geometry_.axis[a].transposed_step = axis.transposed_step;
        }
    });
    parallel_for(kernel->count_tasks(geometry_, outer, inner), threads, bytes_moved(outer, inner),
                 kernel->scratch_bytes(geometry_, inner),
                 [&](int64_t first, int64_t last, void* scratch) {
                     kernel->scatter(geometry_, Part{grad, out, const_cast<void*>(positions), outer,
                                                     inner, first, last, scratch});
                 });
}

void Plan::indices(const void* positions, int64_t* out, int64_t outer, int64_t inner,
                   int threads) const {
    const Geometry& g = geometry_;
    int64_t results = 1;
    for (int a = 0; a < g.axes; ++a) results *= g.axis[a].outputs;
    if (outer * inner * results == 0) return;
    const int bytes = position_bytes();
    const auto offset_of = [&g](int64_t code) {
        int64_t scale = 1, flat = 0;
        for (int a = g.axes - 1; a >= 0; --a) {
            flat += code % g.axis[a].taps * g.axis[a].step * scale;
            code /= g.axis[a].taps;
            scale *= g.axis[a].size;
        }
        return flat;
    };
    // Codes are mostly few: what each adds to the window's first position is looked up.
    std::vector<int64_t> offset(g.positions <= 65536 ? g.positions : 0);
    for (size_t code = 0; code < offset.size(); ++code)
        offset[code] = offset_of(static_cast<int64_t>(code));
    const int64_t columns = g.axis[g.axes - 1].outputs, rows = results / columns;
    parallel_for(outer * rows, threads, outer * inner * results * 9, 0,
                 [&](int64_t first, int64_t last, void*) {
                     for (int64_t row = first; row < last; ++row) {
                         int64_t rest = row % rows, scale = g.axis[g.axes - 1].size, start = 0;
                         for (int a = g.axes - 2; a >= 0; --a) {
                             start += g.axis[a].begin[rest % g.axis[a].outputs] * scale;
                             rest /= g.axis[a].outputs;
                             scale *= g.axis[a].size;
                         }
                         for (int64_t column = 0; column < columns; ++column) {
                             const int64_t at = start + g.axis[g.axes - 1].begin[column];
                             const int64_t to = (row * columns + column) * inner;
                             const auto write = [&](const auto* codes) {
                                 for (int64_t c = 0; c < inner; ++c)
                                     out[to + c] = at + (offset.empty() ? offset_of(codes[to + c])
                                                                        : offset[codes[to + c]]);
                             };
                             if (bytes == 1)
                                 write(static_cast<const uint8_t*>(positions));
                             else if (bytes == 2)
                                 write(static_cast<const uint16_t*>(positions));
                             else
                                 write(static_cast<const uint32_t*>(positions));
                         }
                     }
                 });
}

}  // namespace poolkit
