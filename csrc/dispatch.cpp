#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
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

const Activation* find_activation(const Table& from, const std::string& name,
                                  const std::string& dtype) {
    for (int i = 0; i < from.activation_count; ++i) {
        const Activation& activation = from.activations[i];
        if (activation.name && name == activation.name && dtype == activation.dtype)
            return &activation;
    }
    return nullptr;
}

int64_t size_of(const std::string& dtype) {
    if (dtype.find("64") != std::string::npos) return 8;
    if (dtype.find("32") != std::string::npos) return 4;
    if (dtype.find("16") != std::string::npos) return 2;
    return 1;
}

// Elements of one piece of an elementwise pass.
constexpr int64_t kPiece = 4096;

// Inputs activated at a time: they are read again at once, from the first level of the cache.
constexpr int64_t kAheadBytes = 32 * 1024;
// Inputs pooled before their outputs are activated, which are then still in the second level.
constexpr int64_t kBehindBytes = 256 * 1024;

// The activated inputs of one stripe after the other, in scratch memory of this thread.
class ActivatedStripe {
  public:
    ActivatedStripe(const Activation& activation, double parameter, int64_t element_bytes)
        : activation_(activation), parameter_(parameter), size_(element_bytes) {}
    ~ActivatedStripe() { memory_.let_go(); }
    ActivatedStripe(const ActivatedStripe&) = delete;
    ActivatedStripe& operator=(const ActivatedStripe&) = delete;

    // The address that stands for x while a kernel reads the inputs of this stripe.
    const void* activated(const void* x, const Stripe& stripe) {
        const int64_t span = (stripe.rows - 1) * stripe.pitch + stripe.columns;
        const int64_t bytes = span * size_ + 2 * kSlack;
        if (bytes > room_) {
            room_ = 0;
            begin_ = end_ = 0;
            block_ = static_cast<char*>(memory_.get(bytes));
            room_ = bytes;
        }
        char* to = block_ + kSlack;
        const char* from = static_cast<const char*>(x) + stripe.in * size_;
        if (stripe.rows == 1) {
            // What the last stripe saw too is moved, which costs less than activating it again.
            int64_t kept = 0;
            if (stripe.in >= begin_ && stripe.in < end_) {
                kept = std::min(end_ - stripe.in, stripe.columns);
                std::memmove(to, to + (stripe.in - begin_) * size_, kept * size_);
            }
            activation_.activate(from + kept * size_, to + kept * size_, stripe.columns - kept,
                                 parameter_);
            begin_ = stripe.in;
            end_ = stripe.in + stripe.columns;
        } else {
            begin_ = end_ = 0;
            for (int64_t row = 0; row < stripe.rows; ++row)
                activation_.activate(from + row * stripe.pitch * size_,
                                     to + row * stripe.pitch * size_, stripe.columns, parameter_);
        }
        // Vectors read beyond what they use, but what they read has a value.
        std::memset(to + span * size_, 0, kSlack);
        const uintptr_t start = reinterpret_cast<uintptr_t>(to) - stripe.in * size_;
        return reinterpret_cast<const void*>(start);
    }

  private:
    static constexpr int64_t kSlack = 512;
    static thread_local Scratch memory_;

    const Activation& activation_;
    double parameter_;
    int64_t size_;
    int64_t begin_ = 0, end_ = 0;  // the inputs in the block, where they are one run
    char* block_ = nullptr;
    int64_t room_ = 0;
};

thread_local Scratch ActivatedStripe::memory_;

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

bool has_activation(const std::string& name, const std::string& dtype) {
    return find_activation(table(), name, dtype) != nullptr;
}

void activation_gradient(const std::string& name, const std::string& dtype, double parameter,
                         void* grad, const void* x, int64_t n, int threads) {
    const Activation* activation = find_activation(table(), name, dtype);
    if (!activation) throw std::invalid_argument("no such activation");
    const int64_t bytes = size_of(dtype), pieces = (n + kPiece - 1) / kPiece;
    parallel_for(pieces, threads, 3 * n * bytes, 0, [&](int64_t first, int64_t last, void*) {
        const int64_t from = first * kPiece, to = std::min(last * kPiece, n);
        activation->gradient(static_cast<char*>(grad) + from * bytes,
                             static_cast<const char*>(x) + from * bytes, to - from, parameter);
    });
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
    axis.transposed_most = *std::max_element(count.begin(), count.end());
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
           double second, std::vector<AxisSpec> axes, ActivationSpec activation)
    : reduction_(std::move(reduction)),
      dtype_(std::move(dtype)),
      result_(std::move(result)),
      activation_(std::move(activation)) {
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
        owned_.push_back(OwnedAxis{std::move(spec), {}, {}, 1, 0});
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
    dead_code_ = geometry_.positions;
    if (activation_.name.empty()) return;
    const Activation* applied = find_activation(table(), activation_.name, dtype_);
    if (!applied) throw std::invalid_argument("no such activation");
    if (activation_.behind && applied->mark) ++geometry_.positions, ++simple_.positions;
}

void Plan::requantize(double scale, double out_scale, int out_zero_point,
                      const std::string& rounding) {
    const char* const names[] = {"half_even", "half_away", "half_up", "floor", "trunc"};
    const auto* name = std::find(std::begin(names), std::end(names), rounding);
    if (name == std::end(names)) throw std::invalid_argument("no such rounding");
    int exponent, out_exponent;
    const auto whole = [](double mantissa) {
        return static_cast<uint64_t>(std::ldexp(mantissa, 53));
    };
    Requantization to{};
    to.ratio = scale / out_scale;
    to.mantissa = whole(std::frexp(scale, &exponent));
    to.out_mantissa = whole(std::frexp(out_scale, &out_exponent));
    to.shift = exponent - out_exponent;
    to.out_zero_point = out_zero_point;
    to.rounding = static_cast<Rounding>(name - std::begin(names));
    to.largest = 255.0 * static_cast<double>(geometry_.positions);
    geometry_.requantization = simple_.requantization = to;
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
    const Apply apply = activation_.name.empty() ? Apply::nothing
                        : activation_.behind     ? Apply::behind
                                                 : Apply::ahead;
    run(apply, x, out, positions, outer, inner, threads);
}

void Plan::forward_ahead(const void* x, void* out, void* positions, int64_t outer, int64_t inner,
                         int threads) const {
    run(Apply::ahead, x, out, positions, outer, inner, threads);
}

void Plan::run(Apply apply, const void* x, void* out, void* positions, int64_t outer, int64_t inner,
               int threads) const {
    const Table& from = table();
    const Kernel* kernel = find_kernel(from, reduction_, dtype_, result_);
    if (!kernel || (positions && !kernel->forward_positions))
        throw std::invalid_argument("no such kernel");
    if (positions && geometry_.positions > kMaxPositions)
        throw std::invalid_argument("a window of more than 2^32 positions has no position codes");
    const Activation* activation = nullptr;
    if (apply != Apply::nothing) activation = find_activation(from, activation_.name, dtype_);
    if (apply != Apply::nothing && !activation) throw std::invalid_argument("no such activation");
    const int64_t slabs = outer * outer_scale_, bytes = bytes_moved(outer, inner);
    int64_t outputs = outer * inner;
    for (const OwnedAxis& axis : owned_) outputs *= static_cast<int64_t>(axis.spec.begin.size());
    inner *= inner_scale_;
    if (outputs == 0) return;
    ask_for_huge_pages(out, outputs * size_of(result_));
    if (positions) ask_for_huge_pages(positions, outputs * position_bytes());
    const auto pool = positions ? kernel->forward_positions : kernel->forward;
    const int64_t tasks = kernel->count_tasks(simple_, slabs, inner);
    const int64_t scratch_bytes = kernel->scratch_bytes(simple_, inner, positions != nullptr);
    if (!activation) {
        parallel_for(tasks, threads, bytes, scratch_bytes,
                     [&](int64_t first, int64_t last, void* scratch) {
                         pool(simple_, Part{x, out, positions, slabs, inner, first, last, scratch});
                     });
        return;
    }

    // Tasks of one stripe: whole slabs, or the vectors of a walk over spans, where they fit.
    int64_t plane = slabs * inner * element_bytes_;
    for (int a = 0; a < simple_.axes; ++a) plane *= simple_.axis[a].size;
    const int64_t target = apply == Apply::ahead ? kAheadBytes : kBehindBytes;
    const int64_t count = std::max<int64_t>(target * tasks / std::max<int64_t>(plane, 1), 1);
    const int64_t per_slab = std::max<int64_t>(kernel->count_tasks(simple_, 1, inner), 1);
    const int64_t group = per_slab == 1 ? 16 : per_slab;
    const int code_bytes = position_bytes();
    parallel_for(
        tasks, threads, bytes, scratch_bytes, [&](int64_t first, int64_t last, void* scratch) {
            ActivatedStripe ahead(*activation, activation_.parameter, element_bytes_);
            for (int64_t task = first, end; task < last; task = end) {
                end = task + count;
                if (count >= group) end -= end % group;
                end = std::min(end, last);
                const Stripe stripe = from.stripe_of(simple_, inner, task, end);
                const void* source = apply == Apply::ahead ? ahead.activated(x, stripe) : x;
                pool(simple_, Part{source, out, positions, slabs, inner, task, end, scratch});
                char* results = static_cast<char*>(out) + stripe.out * element_bytes_;
                if (apply == Apply::behind) {
                    if (positions && activation->mark)
                        activation->mark(results,
                                         static_cast<char*>(positions) + stripe.out * code_bytes,
                                         stripe.outputs, dead_code_, code_bytes);
                    activation->activate(results, results, stripe.outputs, activation_.parameter);
                }
            }
        });
}

void Plan::chain(const void* x, void* out, int64_t images, int64_t channels, int64_t levels,
                 int threads) const {
    const Kernel* kernel = find_kernel(table(), reduction_, dtype_, result_);
    if (!kernel || dtype_ != result_ || !activation_.name.empty())
        throw std::invalid_argument("no such kernel");
    int64_t bytes = element_bytes_;
    for (const OwnedAxis& axis : owned_) {
        if (axis.spec.size != static_cast<int64_t>(axis.spec.begin.size()))
            throw std::invalid_argument("a chain needs a window that keeps the size");
        bytes *= axis.spec.size;
    }
    const int64_t planes = images * channels, results = planes * (1 + levels);
    if (planes == 0) return;
    ask_for_huge_pages(out, results * bytes);
    const int64_t tasks = kernel->count_tasks(simple_, outer_scale_, inner_scale_);
    parallel_for(planes, threads, (planes + results) * bytes,
                 kernel->scratch_bytes(simple_, inner_scale_, false),
                 [&](int64_t first, int64_t last, void* scratch) {
                     for (int64_t plane = first; plane < last; ++plane) {
                         const int64_t at = plane / channels * (1 + levels) * channels;
                         char* to = static_cast<char*>(out) + (at + plane % channels) * bytes;
                         std::memcpy(to, static_cast<const char*>(x) + plane * bytes, bytes);
                         for (int64_t level = 0; level < levels; ++level) {
                             char* next = to + channels * bytes;
                             kernel->forward(simple_, Part{to, next, nullptr, outer_scale_,
                                                           inner_scale_, 0, tasks, scratch});
                             to = next;
                         }
                     }
                 });
}

void Plan::transpose_once() const {
    std::call_once(transposed_, [this] {
        for (int a = 0; a < geometry_.axes; ++a) {
            OwnedAxis& axis = owned_[a];
            transpose(axis);
            geometry_.axis[a].transposed_begin = axis.transposed_begin.data();
            geometry_.axis[a].transposed_count = axis.transposed_count.data();
            geometry_.axis[a].transposed_step = axis.transposed_step;
            geometry_.axis[a].transposed_most = axis.transposed_most;
        }
    });
}

void Plan::run_gradient(const Gradient* kernels, const void* grad, const void* positions, void* out,
                        int64_t outer, int64_t inner, int threads) const {
    const Gradient* kernel = nullptr;
    for (int i = 0; i < table().gradient_count; ++i)
        if (kernels[i].dtype && dtype_ == kernels[i].dtype) kernel = &kernels[i];
    if (!kernel) throw std::invalid_argument("no such kernel");
    if (outer == 0 || inner == 0) return;
    int64_t inputs = outer * inner;
    for (const OwnedAxis& axis : owned_) inputs *= axis.spec.size;
    ask_for_huge_pages(out, inputs * element_bytes_);
    parallel_for(kernel->count_tasks(geometry_, outer, inner), threads, bytes_moved(outer, inner),
                 kernel->scratch_bytes(geometry_, inner),
                 [&](int64_t first, int64_t last, void* scratch) {
                     kernel->run(geometry_, Part{grad, out, const_cast<void*>(positions), outer,
                                                 inner, first, last, scratch});
                 });
}

void Plan::scatter(const void* grad, const void* positions, void* out, int64_t outer, int64_t inner,
                   int threads) const {
    transpose_once();
    run_gradient(table().scatters, grad, positions, out, outer, inner, threads);
}

bool Plan::spread(const void* grad, void* out, int64_t outer, int64_t inner, int threads) const {
    transpose_once();
    // Along a row shares are added up on their own; across rows, and lines of channels, together.
    int64_t along = geometry_.axis[geometry_.axes - 1].transposed_most, across = 1;
    for (int a = 0; a < geometry_.axes - 1; ++a) across *= geometry_.axis[a].transposed_most;
    if (inner > 1 ? across * along > kMostSpread : std::max(across, along) > kMostSpread)
        return false;
    run_gradient(table().spreads, grad, nullptr, out, outer, inner, threads);
    return true;
}

void Plan::indices(const void* positions, int64_t* out, int64_t outer, int64_t inner,
                   int threads) const {
    const Geometry& g = geometry_;
    int64_t results = 1;
    for (int a = 0; a < g.axes; ++a) results *= g.axis[a].outputs;
    if (outer * inner * results == 0) return;
    ask_for_huge_pages(out, outer * inner * results * 8);
    const int bytes = position_bytes();
    const auto offset_of = [&](int64_t code) {
        if (code >= dead_code_) return kNowhere;
        int64_t scale = 1, flat = 0;
        for (int a = g.axes - 1; a >= 0; --a) {
            flat += code % g.axis[a].taps * g.axis[a].step * scale;
            code /= g.axis[a].taps;
            scale *= g.axis[a].size;
        }
        return flat;
    };
    // Codes are mostly few: what each adds to the window's first position is looked up.
    std::vector<int64_t> offset(dead_code_ <= 65536 ? dead_code_ + 1 : 0);
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
