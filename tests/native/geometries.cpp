// Random windows over random arrays, every kernel against a plain loop: for the sanitizers, and for
// instruction sets that run in an emulator without Python.
//
//     geometries [how many] [seed]
//
// Prints how many were checked and what differed; the exit status is the number of failures, at
// most 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/dispatch.h"

namespace {

using poolkit::AxisSpec;
using poolkit::Plan;

std::mt19937 engine;
int64_t between(int64_t low, int64_t high) { return low + engine() % (high - low + 1); }
bool one_in(int64_t n) { return between(1, n) == 1; }

struct Case {
    std::vector<AxisSpec> axes;
    int64_t outer = 1, inner = 1, inputs = 1, outputs = 1, positions = 1;
    std::string text;
};

// Output o of a sliding window, clipped to the input.
void add_span(AxisSpec& spec, int64_t start, int64_t taps) {
    int64_t first = -1, count = 0;
    for (int64_t t = 0; t < taps; ++t) {
        const int64_t at = start + t * spec.step;
        if (at < 0 || at >= spec.size) continue;
        if (first < 0) first = at;
        ++count;
    }
    spec.begin.push_back(first < 0 ? 0 : first);
    spec.count.push_back(count);
}

template <class... Numbers>
void describe(std::string& text, const char* format, Numbers... numbers) {
    char line[160];
    std::snprintf(line, sizeof line, format, static_cast<long>(numbers)...);
    text += line;
}

// False where an output would see nothing: a max of nothing has no position.
bool random_axis(AxisSpec& spec, int64_t size, int64_t most_taps, std::string& text) {
    spec.size = size;
    spec.step = 1;
    if (one_in(6)) {  // adaptive bins
        const int64_t bins = between(1, std::min<int64_t>(size + 2, 9));
        for (int64_t o = 0; o < bins; ++o) {
            const int64_t begin = o * size / bins, end = ((o + 1) * size + bins - 1) / bins;
            spec.begin.push_back(begin);
            spec.count.push_back(end - begin);
        }
        describe(text, " adaptive %ld->%ld", size, bins);
        return true;
    }
    const int64_t taps = one_in(8) ? size : between(1, most_taps), stride = between(1, 6);
    spec.step = one_in(3) ? between(2, 4) : 1;
    const int64_t padding = between(0, taps / 2), reach = (taps - 1) * spec.step + 1;
    if (size + 2 * padding < reach) return false;
    int64_t outputs = (size + 2 * padding - reach) / stride + 1;
    if (one_in(2) && outputs * stride - padding < size) ++outputs;  // hangs over the end
    for (int64_t o = 0; o < outputs; ++o) add_span(spec, o * stride - padding, taps);
    describe(text, " %ld: k%ld s%ld p%ld d%ld", size, taps, stride, padding, spec.step);
    return *std::min_element(spec.count.begin(), spec.count.end()) > 0;
}

bool random_case(Case& c) {
    const int64_t axes = between(1, 3);
    for (int64_t a = 0; a < axes; ++a) {
        const bool fastest = a == axes - 1;
        const int64_t size = fastest ? between(1, axes == 1 ? 6000 : 90) : between(1, 20);
        AxisSpec spec;
        if (!random_axis(spec, size, axes == 3 ? 3 : (one_in(6) ? 14 : 5), c.text)) return false;
        c.inputs *= size;
        c.outputs *= static_cast<int64_t>(spec.begin.size());
        c.positions *= *std::max_element(spec.count.begin(), spec.count.end());
        c.axes.push_back(spec);
    }
    c.outer = between(1, 4);
    c.inner = one_in(3) ? between(2, 70) : 1;
    describe(c.text, "; %ld outer, %ld inner", c.outer, c.inner);
    // The plain loops are slow: large ones are few.
    return c.outer * c.inner * (c.inputs + c.outputs) < 20000 || one_in(30);
}

// Calls body(output, the inputs that it sees in row-major order) for one plane and column.
void each_window(const Case& c, const std::function<void(int64_t, std::vector<int64_t>&)>& body) {
    std::vector<int64_t> seen;
    for (int64_t item = 0; item < c.outer * c.outputs * c.inner; ++item) {
        const int64_t column = item % c.inner, output = item / c.inner % c.outputs;
        const int64_t plane = item / c.inner / c.outputs;
        seen.assign(1, 0);
        int64_t scale = c.outputs;
        for (const AxisSpec& axis : c.axes) {
            scale /= static_cast<int64_t>(axis.begin.size());
            const int64_t o = output / scale % static_cast<int64_t>(axis.begin.size());
            std::vector<int64_t> next;
            for (const int64_t at : seen)
                for (int64_t t = 0; t < axis.count[o]; ++t)
                    next.push_back(at * axis.size + axis.begin[o] + t * axis.step);
            seen = next;
        }
        for (int64_t& at : seen) at = (plane * c.inputs + at) * c.inner + column;
        body(item, seen);
    }
}

template <class T>
const char* name_of();
template <>
const char* name_of<float>() {
    return "float32";
}
template <>
const char* name_of<double>() {
    return "float64";
}
template <>
const char* name_of<int8_t>() {
    return "int8";
}
template <>
const char* name_of<uint8_t>() {
    return "uint8";
}
template <>
const char* name_of<int32_t>() {
    return "int32";
}

long failures = 0;
void fail(const Case& c, const char* what, const char* dtype) {
    if (++failures <= 20) std::printf("%s of %s differs: %s\n", what, dtype, c.text.c_str());
}

bool alike(double a, double b) { return a == b || (a != a && b != b); }

// Exact arrays on the heap, so that the sanitizer sees the first element beyond.
template <class T>
std::vector<T> random_values(int64_t n) {
    std::vector<T> x(n);
    for (T& v : x) v = static_cast<T>(between(std::numeric_limits<T>::is_signed ? -50 : 0, 50));
    if constexpr (std::numeric_limits<T>::has_quiet_NaN)
        if (one_in(2))
            for (int i = 0; i < 3; ++i)
                x[between(0, n - 1)] = one_in(2) ? std::numeric_limits<T>::quiet_NaN() : T(-0.0);
    return x;
}

template <class T>
void check_extremes(const Case& c) {
    const std::vector<T> x = random_values<T>(c.outer * c.inputs * c.inner);
    const int64_t results = c.outer * c.outputs * c.inner;
    const int bytes = c.positions <= 256 ? 1 : c.positions <= 65536 ? 2 : 4;
    for (const bool largest : {true, false}) {
        const char* name = largest ? "max" : "min";
        const Plan plan(name, name_of<T>(), name_of<T>(), 1, 0, c.axes);
        std::vector<T> out(results), with_positions(results);
        std::vector<char> positions(results * bytes);
        std::vector<int64_t> indices(results);
        const int threads = static_cast<int>(between(1, 2));
        plan.forward(x.data(), out.data(), nullptr, c.outer, c.inner, threads);
        plan.forward(x.data(), with_positions.data(), positions.data(), c.outer, c.inner, threads);
        plan.indices(positions.data(), indices.data(), c.outer, c.inner, threads);
        std::vector<T> expected_gradient(x.size()), gradient(x.size()), ones(results, T(1));
        bool values = true, places = true;
        each_window(c, [&](int64_t o, std::vector<int64_t>& seen) {
            int64_t best = seen[0];  // the first of equal ones, the last NaN
            for (const int64_t i : seen)
                if (x[i] != x[i] || (largest ? x[i] > x[best] : x[i] < x[best])) best = i;
            values = values && alike(out[o], x[best]) && alike(with_positions[o], x[best]) &&
                     std::signbit(double(out[o])) == std::signbit(double(x[best]));
            const int64_t plane = o / c.inner / c.outputs;
            places = places && indices[o] == best / c.inner - plane * c.inputs;
            expected_gradient[best] += 1;
        });
        if (!values) fail(c, name, name_of<T>());
        if (!places) fail(c, "the position", name_of<T>());
        if constexpr (std::numeric_limits<T>::has_quiet_NaN) {
            try {
                plan.scatter(ones.data(), positions.data(), gradient.data(), c.outer, c.inner, 1);
            } catch (const std::exception&) {
                continue;  // windows that the native gradient refuses, with a reason
            }
            if (gradient != expected_gradient) fail(c, "the gradient", name_of<T>());
        }
    }
}

// Half types by their bits, of which every value here has its own but the NaNs.
void check_halves(const Case& c) {
    const auto half = [](float v, bool brain) -> uint16_t {  // v is a whole number below 2^8
        uint32_t bits;
        std::memcpy(&bits, &v, sizeof bits);
        if (brain) return static_cast<uint16_t>(bits >> 16);
        const uint32_t sign = (bits >> 16) & 0x8000;
        if (v != v) return static_cast<uint16_t>(sign | 0x7e00);
        if (v == 0) return static_cast<uint16_t>(sign);
        return static_cast<uint16_t>(sign | (((bits & 0x7fffffff) - (112u << 23)) >> 13));
    };
    const std::vector<float> values = random_values<float>(c.outer * c.inputs * c.inner);
    std::vector<uint16_t> x(values.size()), out(c.outer * c.outputs * c.inner);
    for (const bool brain : {true, false}) {
        const char* dtype = brain ? "bfloat16" : "float16";
        for (size_t i = 0; i < x.size(); ++i) x[i] = half(values[i], brain);
        for (const bool largest : {true, false}) {
            const char* name = largest ? "max" : "min";
            Plan(name, dtype, dtype, 1, 0, c.axes)
                .forward(x.data(), out.data(), nullptr, c.outer, c.inner, 1);
            bool equal = true;
            each_window(c, [&](int64_t o, std::vector<int64_t>& seen) {
                int64_t best = seen[0];
                for (const int64_t i : seen)
                    if (values[i] != values[i] ||
                        (largest ? values[i] > values[best] : values[i] < values[best]))
                        best = i;
                const bool nan = values[best] != values[best];
                const int infinity = brain ? 0x7f80 : 0x7c00;
                equal = equal && (nan ? (out[o] & 0x7fff) > infinity : out[o] == x[best]);
            });
            if (!equal) fail(c, name, dtype);
        }
    }
}

// Sums of small whole numbers are exact in any order.
template <class T, class O>
void check_sums(const Case& c) {
    std::vector<T> x(c.outer * c.inputs * c.inner);
    for (T& v : x) v = static_cast<T>(between(std::numeric_limits<T>::is_signed ? -8 : 0, 8));
    std::vector<O> out(c.outer * c.outputs * c.inner);
    const char* result = std::is_same_v<T, O> ? name_of<T>() : "int64";
    const auto check = [&](const char* name, auto lift) {
        Plan(name, name_of<T>(), result, 1, 0, c.axes)
            .forward(x.data(), out.data(), nullptr, c.outer, c.inner, 1);
        bool equal = true;
        each_window(c, [&](int64_t o, std::vector<int64_t>& seen) {
            double sum = 0;
            for (const int64_t i : seen) sum += lift(static_cast<double>(x[i]));
            equal = equal && static_cast<double>(out[o]) == sum;
        });
        if (!equal) fail(c, name, name_of<T>());
    };
    check("sum", [](double v) { return v; });
    if constexpr (std::is_same_v<T, O>) {
        check("sum_abs", [](double v) { return std::fabs(v); });
        std::vector<T> gradient(x.size()), expected(x.size());
        const Plan plan("sum", name_of<T>(), result, 1, 0, c.axes);
        for (O& v : out) v = static_cast<O>(between(-8, 8));
        try {
            if (!plan.spread(out.data(), gradient.data(), c.outer, c.inner, 1)) return;
        } catch (const std::exception&) {
            return;
        }
        each_window(c, [&](int64_t o, std::vector<int64_t>& seen) {
            for (const int64_t i : seen) expected[i] += out[o];
        });
        if (gradient != expected) fail(c, "the gradient of a sum", name_of<T>());
    }
}

// Reductions that need whole windows, against the definition in float64.
void check_whole(const Case& c) {
    std::vector<float> x(c.outer * c.inputs * c.inner), out(c.outer * c.outputs * c.inner);
    for (float& v : x) v = static_cast<float>(between(-8, 8)) / 4;
    const auto check = [&](const char* name, double parameter, double second, auto reduce) {
        Plan(name, "float32", "float32", parameter, second, c.axes)
            .forward(x.data(), out.data(), nullptr, c.outer, c.inner, 1);
        bool close = true;
        each_window(c, [&](int64_t o, std::vector<int64_t>& seen) {
            std::vector<double> window;
            for (const int64_t i : seen) window.push_back(x[i]);
            const double expected = reduce(window);
            close = close && (alike(out[o], expected) ||
                              std::fabs(out[o] - expected) <= 1e-4 * (1 + std::fabs(expected)));
        });
        if (!close) fail(c, name, "float32");
    };
    check("quantile", 0.5, 0, [](std::vector<double>& w) {
        std::sort(w.begin(), w.end());
        const double at = 0.5 * (w.size() - 1);
        const size_t below = static_cast<size_t>(at);
        const double above = w[std::min(below + 1, w.size() - 1)];
        return w[below] + (above - w[below]) * (at - below);
    });
    check("log_sum_exp", 1, 0, [](std::vector<double>& w) {
        double sum = 0;
        for (const double v : w) sum += std::exp(v);
        return std::log(sum / w.size());
    });
    check("soft", 1, 0, [](std::vector<double>& w) {
        double sum = 0, weighted = 0;
        for (const double v : w) sum += std::exp(v), weighted += v * std::exp(v);
        return weighted / sum;
    });
}

}  // namespace

int main(int argc, char** argv) {
    const long wanted = argc > 1 ? std::atol(argv[1]) : 1000;
    engine.seed(argc > 2 ? std::atol(argv[2]) : 7);
    for (const std::string& isa : poolkit::available_isas()) {
        poolkit::use_isa(isa);
        for (long done = 0; done < wanted;) {
            Case c;
            if (!random_case(c)) continue;
            check_extremes<float>(c);
            check_extremes<double>(c);
            check_extremes<int8_t>(c);
            check_extremes<uint8_t>(c);
            check_halves(c);
            check_sums<float, float>(c);
            check_sums<double, double>(c);
            check_sums<int8_t, int64_t>(c);
            check_sums<int32_t, int64_t>(c);
            check_whole(c);
            ++done;
        }
        std::printf("%s: %ld geometries, %ld failures\n", isa.c_str(), wanted, failures);
    }
    return failures != 0;
}
