// The only file that sees Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bags.h"
#include "dispatch.h"
#include "events.h"
#include "regions.h"

namespace nb = nanobind;
using namespace nb::literals;

using Integers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

// Addresses of contiguous arrays, 0 for those that are not there.
const int64_t* integers(uintptr_t at) { return reinterpret_cast<const int64_t*>(at); }
const double* doubles(uintptr_t at) { return reinterpret_cast<const double*>(at); }

// (begin, last, count) of a view; (reduction, view, parameter, other, out) of a job.
using View = std::tuple<uintptr_t, int64_t, uintptr_t>;
using Job = std::tuple<std::string, int64_t, double, uintptr_t, uintptr_t>;

poolkit::EventView view_of(const View& view) {
    return {integers(std::get<0>(view)), std::get<1>(view),
            reinterpret_cast<int64_t*>(std::get<2>(view))};
}

}  // namespace

NB_MODULE(_native, m) {
    // Plans live in Python's caches until the process ends, which nanobind would report.
    nb::set_leak_warnings(false);

    m.attr("MAX_AXES") = poolkit::kMaxAxes;
    m.def("isa", [] { return std::string(poolkit::table().isa); });
    m.def("available_isas", &poolkit::available_isas);
    m.def("use_isa", &poolkit::use_isa, "name"_a);
    m.def("has_kernel", &poolkit::has_kernel, "reduction"_a, "dtype"_a, "result"_a);
    m.def("has_activation", &poolkit::has_activation, "name"_a, "dtype"_a);
    m.def("activation_gradient",
          [](const std::string& name, const std::string& dtype, double parameter, uintptr_t grad,
             uintptr_t x, int64_t n, int threads) {
              nb::gil_scoped_release release;
              poolkit::activation_gradient(name, dtype, parameter, reinterpret_cast<void*>(grad),
                                           reinterpret_cast<const void*>(x), n, threads);
          });

    // Addresses of contiguous arrays, 0 for those that are not there, as for plans below.
    m.def("pool_bags", [](const std::string& reduction, const std::string& dtype, double parameter,
                          uintptr_t table, uintptr_t other, uintptr_t index, uintptr_t begin,
                          uintptr_t count, int64_t bags, int64_t width, int64_t entries,
                          uintptr_t weights, uintptr_t divisors, uintptr_t out, uintptr_t codes,
                          int threads) {
        nb::gil_scoped_release release;
        poolkit::pool_bags(
            reduction, dtype,
            {reinterpret_cast<const void*>(table), reinterpret_cast<const void*>(other),
             reinterpret_cast<const int64_t*>(index), reinterpret_cast<const int64_t*>(begin),
             reinterpret_cast<const int64_t*>(count), bags, width, entries,
             reinterpret_cast<const void*>(weights), reinterpret_cast<const void*>(divisors),
             parameter, reinterpret_cast<void*>(out), reinterpret_cast<int32_t*>(codes), 0, 0},
            threads);
    });
    m.def("scatter_bags", [](const std::string& dtype, uintptr_t grad, uintptr_t codes,
                             uintptr_t index, uintptr_t begin, uintptr_t count, int64_t bags,
                             int64_t width, uintptr_t weights, uintptr_t out, int threads) {
        nb::gil_scoped_release release;
        poolkit::Bags described{};
        described.table = reinterpret_cast<const void*>(grad);
        described.index = reinterpret_cast<const int64_t*>(index);
        described.begin = reinterpret_cast<const int64_t*>(begin);
        described.count = reinterpret_cast<const int64_t*>(count);
        described.bags = bags;
        described.width = width;
        described.weights = reinterpret_cast<const void*>(weights);
        described.out = reinterpret_cast<void*>(out);
        described.codes = reinterpret_cast<int32_t*>(codes);
        poolkit::scatter_bags(dtype, described, threads);
    });
    m.def("transpose_bags", [](uintptr_t index, uintptr_t begin, uintptr_t count, int64_t bags,
                               int64_t rows, uintptr_t begin_of, uintptr_t count_of,
                               uintptr_t entry, uintptr_t bag) {
        nb::gil_scoped_release release;
        poolkit::Bags described{};
        described.index = reinterpret_cast<const int64_t*>(index);
        described.begin = reinterpret_cast<const int64_t*>(begin);
        described.count = reinterpret_cast<const int64_t*>(count);
        described.bags = bags;
        poolkit::transpose_bags(described, rows, reinterpret_cast<int64_t*>(begin_of),
                                reinterpret_cast<int64_t*>(count_of),
                                reinterpret_cast<int64_t*>(entry), reinterpret_cast<int64_t*>(bag));
    });

    m.def("pool_regions",
          [](const std::string& step, const std::string& dtype, int rule, bool channels_last,
             const std::vector<int64_t>& shape, int64_t boxes, int64_t rows, int64_t columns,
             uintptr_t image, uintptr_t place, uintptr_t grid, uintptr_t x, uintptr_t grad,
             uintptr_t out, uintptr_t codes, int code_bytes, int64_t nowhere, int threads) {
              nb::gil_scoped_release release;
              poolkit::Regions described{};
              described.rule = static_cast<poolkit::Rule>(rule);
              described.channels_last = channels_last;
              described.images = shape.at(0);
              described.channels = shape.at(1);
              described.height = shape.at(2);
              described.width = shape.at(3);
              described.boxes = boxes;
              described.rows = rows;
              described.columns = columns;
              described.image = reinterpret_cast<const int64_t*>(image);
              described.place = reinterpret_cast<const double*>(place);
              described.grid = reinterpret_cast<const int64_t*>(grid);
              described.x = reinterpret_cast<const void*>(x);
              described.grad = reinterpret_cast<const void*>(grad);
              described.out = reinterpret_cast<void*>(out);
              described.codes = reinterpret_cast<void*>(codes);
              described.code_bytes = code_bytes;
              described.nowhere = nowhere;
              poolkit::pool_regions(step, dtype, described, threads);
          });

    nb::class_<poolkit::EventSummary>(m, "EventSummary")
        .def_prop_ro("nbytes", [](const poolkit::EventSummary& summary) {
            size_t bytes = summary.nodes.size() * sizeof(poolkit::EventSummary::Node);
            for (const auto& states : summary.states)
                bytes += 8 * (states.values.size() + states.begin.size());
            return bytes;
        });
    nb::class_<poolkit::EventLog>(m, "EventLog")
        .def("__init__",
             [](poolkit::EventLog* self, int64_t events, uintptr_t key, uintptr_t time,
                uintptr_t tie, uintptr_t known, uintptr_t row, uintptr_t weight, uintptr_t table,
                int64_t width, bool wide, uintptr_t keys, int64_t key_count,
                const std::vector<const poolkit::EventSummary*>& summaries, int threads) {
                 nb::gil_scoped_release release;
                 new (self) poolkit::EventLog({events, integers(key), integers(time), integers(tie),
                                               integers(known), integers(row), doubles(weight)},
                                              {reinterpret_cast<const void*>(table), width, wide},
                                              integers(keys), key_count, summaries, threads);
             })
        .def("summary", &poolkit::EventLog::summary, nb::call_guard<nb::gil_scoped_release>())
        .def("pool",
             [](const poolkit::EventLog& log, int64_t queries, uintptr_t key, uintptr_t time,
                const std::vector<View>& views, const std::vector<Job>& jobs, int threads) {
                 std::vector<poolkit::EventView> seen;
                 for (const View& view : views) seen.push_back(view_of(view));
                 std::vector<poolkit::EventJob> work;
                 for (const auto& [reduction, view, parameter, other, out] : jobs)
                     work.push_back({reduction, view, parameter, doubles(other),
                                     reinterpret_cast<void*>(out)});
                 nb::gil_scoped_release release;
                 log.pool({queries, integers(key), integers(time)}, seen, work, threads);
             })
        .def("visible", [](const poolkit::EventLog& log, int64_t queries, uintptr_t key,
                           uintptr_t time, const View& view, uintptr_t offsets, uintptr_t rows,
                           uintptr_t weights, int threads) {
            nb::gil_scoped_release release;
            log.visible({queries, integers(key), integers(time)}, view_of(view), integers(offsets),
                        reinterpret_cast<int64_t*>(rows), reinterpret_cast<double*>(weights),
                        threads);
        });

    nb::class_<poolkit::Plan>(m, "Plan")
        .def(
            "__init__",
            [](poolkit::Plan* self, const std::string& reduction, const std::string& dtype,
               const std::string& result, double exponent, double second,
               const std::vector<int64_t>& sizes, const std::vector<Integers>& begins,
               const std::vector<Integers>& counts, const std::vector<int64_t>& steps,
               const std::vector<Integers>& divisors, const std::string& activation,
               double parameter, bool behind) {
                std::vector<poolkit::AxisSpec> axes;
                for (size_t a = 0; a < sizes.size(); ++a) {
                    poolkit::AxisSpec spec;
                    spec.size = sizes[a];
                    const Integers &begin = begins.at(a), &count = counts.at(a);
                    spec.begin.assign(begin.data(), begin.data() + begin.shape(0));
                    spec.count.assign(count.data(), count.data() + count.shape(0));
                    spec.step = steps.at(a);
                    if (!divisors.empty()) {
                        const Integers& divisor = divisors.at(a);
                        spec.divisor.assign(divisor.data(), divisor.data() + divisor.shape(0));
                    }
                    axes.push_back(std::move(spec));
                }
                new (self) poolkit::Plan(reduction, dtype, result, exponent, second,
                                         std::move(axes), {activation, parameter, behind});
            },
            "reduction"_a, "dtype"_a, "result"_a, "exponent"_a, "second"_a, "sizes"_a, "begins"_a,
            "counts"_a, "steps"_a, "divisors"_a, "activation"_a, "parameter"_a, "behind"_a)
        .def_prop_ro("position_bytes", &poolkit::Plan::position_bytes)
        .def("requantize", &poolkit::Plan::requantize, "scale"_a, "out_scale"_a, "out_zero_point"_a,
             "rounding"_a)
        // Addresses of contiguous arrays; the caller keeps them alive and has checked their sizes.
        .def("forward",
             [](const poolkit::Plan& plan, uintptr_t x, uintptr_t out, uintptr_t positions,
                int64_t outer, int64_t inner, int threads) {
                 nb::gil_scoped_release release;
                 plan.forward(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out),
                              reinterpret_cast<void*>(positions), outer, inner, threads);
             })
        .def("forward_ahead",
             [](const poolkit::Plan& plan, uintptr_t x, uintptr_t out, uintptr_t positions,
                int64_t outer, int64_t inner, int threads) {
                 nb::gil_scoped_release release;
                 plan.forward_ahead(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out),
                                    reinterpret_cast<void*>(positions), outer, inner, threads);
             })
        .def("chain",
             [](const poolkit::Plan& plan, uintptr_t x, uintptr_t out, int64_t images,
                int64_t channels, int64_t levels, int threads) {
                 nb::gil_scoped_release release;
                 plan.chain(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), images,
                            channels, levels, threads);
             })
        .def("scatter",
             [](const poolkit::Plan& plan, uintptr_t grad, uintptr_t positions, uintptr_t out,
                int64_t outer, int64_t inner, int threads) {
                 nb::gil_scoped_release release;
                 plan.scatter(reinterpret_cast<const void*>(grad),
                              reinterpret_cast<const void*>(positions),
                              reinterpret_cast<void*>(out), outer, inner, threads);
             })
        .def("spread",
             [](const poolkit::Plan& plan, uintptr_t grad, uintptr_t out, int64_t outer,
                int64_t inner, int threads) {
                 nb::gil_scoped_release release;
                 return plan.spread(reinterpret_cast<const void*>(grad),
                                    reinterpret_cast<void*>(out), outer, inner, threads);
             })
        .def("indices", [](const poolkit::Plan& plan, uintptr_t positions, uintptr_t out,
                           int64_t outer, int64_t inner, int threads) {
            nb::gil_scoped_release release;
            plan.indices(reinterpret_cast<const void*>(positions), reinterpret_cast<int64_t*>(out),
                         outer, inner, threads);
        });
}
