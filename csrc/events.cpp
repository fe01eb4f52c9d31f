#include "events.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

#include "parallel.h"

namespace poolkit {
namespace {

constexpr int64_t kAhead = 32;  // events further on whose rows are fetched; see bags.inc.cpp

// --- the trie --------------------------------------------------------------------------------

// Where two neighbours part: the highest bit in which their times differ or, at one time, their
// ranks. Never 0.
inline uint8_t level_between(int64_t time, int64_t rank, int64_t next_time, int64_t next_rank) {
    const auto bits = [](int64_t a, int64_t b) {
        return std::bit_width(static_cast<uint64_t>(a) ^ static_cast<uint64_t>(b));
    };
    return static_cast<uint8_t>(time != next_time ? 64 + bits(time, next_time)
                                                  : bits(rank, next_rank));
}

constexpr uint8_t kNone = 255;   // in front of the first event
constexpr int kMostDepth = 132;  // levels along a branch fall
// States kept for one key by one thread take at most about this much memory.
constexpr int64_t kKeptBytes = 64 << 20;
constexpr int64_t kSmallest = 4;  // events of a node that is worth keeping

// What one thread merges into, and the nodes that it keeps while it works on one key.
class NodeStore {
  public:
    struct Node {
        const double* state;
        int64_t end;
        int32_t smaller;  // the next smaller node that begins where this one does, or -1
    };

    // What a summary has of two events, which stand for those of its node.
    struct Carried {
        int64_t begin;
        const double* state;
        int64_t rows;  // of the state: one, unless it is an exact sum
    };

    // For events [first, last): nothing is kept that has fewer than `grain` of them but what is
    // carried.
    void reset(int64_t first, int64_t last, int64_t grain, int64_t size,
               const std::vector<Carried>& carried) {
        first_ = first;
        grain_ = grain;
        nodes_.clear();
        largest_.assign(grain > last - first && carried.empty() ? 0 : last - first, -1);
        if (size != size_) blocks_.clear();
        size_ = size;
        used_ = 0;
        slots_.resize(kMostDepth * size);
        for (const Carried& node : carried)
            if (node.begin >= first && node.begin + 2 <= last)
                keep(node.begin, node.begin + 2, node.state);
    }
    double* slot(int depth) { return slots_.data() + depth * size_; }
    bool keeps(int64_t events) const { return !largest_.empty() && events >= grain_; }
    double* room() {
        if (used_ == static_cast<int64_t>(blocks_.size()) * kBlock)
            blocks_.emplace_back(new double[kBlock * size_]);
        double* at = blocks_[used_ / kBlock].get() + used_ % kBlock * size_;
        ++used_;
        return at;
    }
    void keep(int64_t begin, int64_t end, const double* state) {
        int32_t& largest = largest_[begin - first_];
        nodes_.push_back({state, end, largest});
        largest = static_cast<int32_t>(nodes_.size()) - 1;
    }
    // The largest node from `begin` on that does not go beyond `end`, or null.
    const Node* find(int64_t begin, int64_t end) const {
        if (largest_.empty()) return nullptr;
        int32_t at = largest_[begin - first_];
        while (at >= 0 && nodes_[at].end > end) at = nodes_[at].smaller;
        return at < 0 ? nullptr : &nodes_[at];
    }

  private:
    static constexpr int64_t kBlock = 64;
    int64_t first_ = 0, grain_ = 0, size_ = 0, used_ = 0;
    std::vector<Node> nodes_;
    std::vector<int32_t> largest_;
    std::vector<std::unique_ptr<double[]>> blocks_;
    std::vector<double> slots_;
};

// From one time to a later one, which may be more than an int64_t holds.
uint64_t ticks(int64_t from, int64_t to) {
    return static_cast<uint64_t>(to) - static_cast<uint64_t>(from);
}

// Merges neighbours in the order of the trie as they are pushed. A family gives lift(out, event),
// merge(out, a, b, gap), where `out` may be a and the gap is the time between the last events of
// the two; append(out, a, event, gap), the same for a single event, and pair(out, event, event,
// gap) for two.
template <class Family>
class Fold {
  public:
    Fold(const Family& family, const Event* events, NodeStore& nodes)
        : family_(family), events_(events), nodes_(nodes) {}

    template <bool Keep = false>
    void push(int64_t begin, int64_t end, const double* state, uint8_t level) {
        while (parts_[size_ - 1].level < level) merge<Keep>();
        parts_[size_++] = {begin, end, state, level};
    }
    void restart() { size_ = 1; }
    // The state of all that was pushed, which is something.
    const double* finish() {
        while (size_ > 2) merge<false>();
        if (!parts_[1].state) {
            family_.lift(nodes_.slot(1), parts_[1].begin);
            parts_[1].state = nodes_.slot(1);
        }
        return parts_[1].state;
    }
    int64_t last() const { return parts_[size_ - 1].end - 1; }

  private:
    struct Part {
        int64_t begin, end;
        const double* state;  // null for a single event
        uint8_t level;        // of the border in front of it
    };

    template <bool Keep>
    void merge() {
        Part &a = parts_[size_ - 2], &b = parts_[size_ - 1];
        const bool kept = Keep && nodes_.keeps(b.end - a.begin);
        double* out = kept ? nodes_.room() : nodes_.slot(size_ - 2);
        const uint64_t gap = ticks(events_[a.end - 1].time, events_[b.end - 1].time);
        if (!a.state && !b.state) {
            family_.pair(out, a.begin, b.begin, gap);
        } else {
            if (!a.state) {
                family_.lift(out, a.begin);
                a.state = out;
            }
            if (b.state) {
                family_.merge(out, a.state, b.state, gap);
            } else {
                family_.append(out, a.state, b.begin, gap);
            }
        }
        a.state = out;
        a.end = b.end;
        if (kept) nodes_.keep(a.begin, a.end, out);
        --size_;
    }

    const Family& family_;
    const Event* events_;
    NodeStore& nodes_;
    // In front of the first is one that nothing is merged with.
    Part parts_[kMostDepth] = {{0, 0, nullptr, kNone}};
    int size_ = 1;
};

// --- the families of reductions -----------------------------------------------------------------

template <class T>
struct Values {
    const Event* events;
    const double* weights;  // null: all 1
    const T* table;
    int64_t width;

    const T* row(int64_t event) const { return table + events[event].row * width; }
    double weight(int64_t event) const { return weights ? weights[event] : 1.0; }
    void fetch(int64_t event) const {
        const char* at = reinterpret_cast<const char*>(row(event));
        for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(T)); byte += 64)
            __builtin_prefetch(at + byte, 0, 2);
    }
};

// Sums of weighted rows, and behind them that of the weights.
template <class T, bool Weighted>
struct Additive : Values<T> {
    int64_t size() const { return this->width + 1; }
    void lift(double* out, int64_t event) const {
        const T* x = this->row(event);
        const double w = this->weight(event);
        for (int64_t j = 0; j < this->width; ++j) out[j] = Weighted ? w * x[j] : double(x[j]);
        out[this->width] = w;
    }
    void pair(double* out, int64_t a, int64_t b, uint64_t) const {
        const T *x = this->row(a), *y = this->row(b);
        const double w = this->weight(a), v = this->weight(b);
#pragma GCC ivdep
        for (int64_t j = 0; j < this->width; ++j)
            out[j] = Weighted ? w * x[j] + v * y[j] : double(x[j]) + y[j];
        out[this->width] = w + v;
    }
    void append(double* out, const double* a, int64_t event, uint64_t) const {
        const T* x = this->row(event);
        const double w = this->weight(event);
#pragma GCC ivdep
        for (int64_t j = 0; j < this->width; ++j) out[j] = a[j] + (Weighted ? w * x[j] : x[j]);
        out[this->width] = a[this->width] + w;
    }
    void merge(double* out, const double* a, const double* b, uint64_t) const {
#pragma GCC ivdep
        for (int64_t j = 0; j <= this->width; ++j) out[j] = a[j] + b[j];
    }
};

// Sums of rows that were worth more by half for each half-life they are younger; relative to the
// last event that weighs anything, so that an old history does not vanish. Behind them and the
// weights' sum, where there are weights: the time from that event to the last.
template <class T, bool Weighted>
struct Decayed : Additive<T, Weighted> {
    double half_life;

    int64_t size() const { return this->width + 1 + Weighted; }
    double factor(double gap) const;
    // From the last event of a state that weighs anything to its last.
    double late(const double* state) const {
        if constexpr (Weighted) return state[this->width + 1];
        return 0;
    }
    void lift(double* out, int64_t event) const {
        Additive<T, Weighted>::lift(out, event);
        if constexpr (Weighted) out[this->width + 1] = 0;
    }
    void pair(double* out, int64_t a, int64_t b, uint64_t gap) const {
        lift(out, a);
        append(out, out, b, gap);
    }
    void append(double* out, const double* a, int64_t event, uint64_t gap) const {
        const T* x = this->row(event);
        const int64_t n = this->width;
        const double w = this->weight(event), apart = gap + late(a);
        const double f = Weighted && w == 0 ? 1.0 : factor(apart);
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) out[j] = f * a[j] + (Weighted ? w * x[j] : x[j]);
        out[n] = f * a[n] + w;
        if constexpr (Weighted) out[n + 1] = w == 0 ? apart : 0.0;
    }
    void merge(double* out, const double* a, const double* b, uint64_t gap) const {
        const int64_t n = this->width;
        const double apart = gap + late(a);
        const bool weightless = Weighted && b[n] == 0;
        const double f = weightless ? 1.0 : factor(apart - late(b));
#pragma GCC ivdep
        for (int64_t j = 0; j <= n; ++j) out[j] = f * a[j] + b[j];
        if constexpr (Weighted) out[n + 1] = weightless ? apart : b[n + 1];
    }
};

// The largest or smallest of weighted rows; a NaN stays.
template <class T, bool Max>
struct Extreme : Values<T> {
    int64_t size() const { return this->width; }
    static double of(double a, double b) {
        return ((Max ? b > a : b < a) || b != b) && a == a ? b : a;
    }
    void lift(double* out, int64_t event) const {
        const T* x = this->row(event);
        const double w = this->weight(event);
        for (int64_t j = 0; j < this->width; ++j) out[j] = w * x[j];
    }
    void pair(double* out, int64_t a, int64_t b, uint64_t gap) const {
        lift(out, a);
        append(out, out, b, gap);
    }
    void append(double* out, const double* a, int64_t event, uint64_t) const {
        const T* x = this->row(event);
        const double w = this->weight(event);
#pragma GCC ivdep
        for (int64_t j = 0; j < this->width; ++j) out[j] = of(a[j], w * x[j]);
    }
    void merge(double* out, const double* a, const double* b, uint64_t) const {
#pragma GCC ivdep
        for (int64_t j = 0; j < this->width; ++j) out[j] = of(a[j], b[j]);
    }
};

// The mean of rows, the weighted squares about it, and the sum of the weights, merged about their
// means (Chan, Golub and LeVeque, 1979).
template <class T>
struct Centred : Values<T> {
    int64_t size() const { return 2 * this->width + 1; }
    void lift(double* out, int64_t event) const {
        const T* x = this->row(event);
        for (int64_t j = 0; j < this->width; ++j) out[j] = x[j];
        // An infinity has no deviation: NaN.
        for (int64_t j = 0; j < this->width; ++j) out[this->width + j] = double(x[j]) - x[j];
        out[2 * this->width] = this->weight(event);
    }
    void pair(double* out, int64_t a, int64_t b, uint64_t gap) const {
        lift(out, a);
        append(out, out, b, gap);
    }
    void append(double* out, const double* a, int64_t event, uint64_t) const {
        const int64_t n = this->width;
        const T* x = this->row(event);
        const double wa = a[2 * n], w = this->weight(event), total = wa + w;
        const bool first = wa == 0;  // of those that weigh anything, so far
        const double share = total > 0 ? w / total : 0.0, both = wa * share;
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) {
            const double apart = x[j] - a[j];
            out[n + j] = a[n + j] + (double(x[j]) - x[j]) + apart * (apart * both);
            out[j] = first ? x[j] : a[j] + apart * share;
        }
        out[2 * n] = total;
    }
    void merge(double* out, const double* a, const double* b, uint64_t) const {
        const int64_t n = this->width;
        const double wa = a[2 * n], wb = b[2 * n], total = wa + wb;
        const bool first = wa == 0;
        const double share = total > 0 ? wb / total : 0.0, both = wa * share;
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) {
            const double apart = b[j] - a[j];
            out[n + j] = a[n + j] + b[n + j] + apart * (apart * both);
            out[j] = first ? b[j] : a[j] + apart * share;
        }
        out[2 * n] = total;
    }
};

constexpr double kLog2E = 0x1.71547652b82fep+0;

// 2^x for x <= 0, without libm's, whose last bit depends on the processor. To 2 ulp.
double power_of_two(double x) {
    if (!(x > -1100)) return x == x ? 0.0 : x;
    const double n = std::nearbyint(x), y = (x - n) * 0x1.62e42fefa39efp-1;
    double p = 1.0;
    for (int k = 14; k > 0; --k) p = 1.0 + p * (y / k);  // |y| <= log(2) / 2
    return std::ldexp(p, static_cast<int>(n));
}

template <class T, bool Weighted>
double Decayed<T, Weighted>::factor(double gap) const {
    return gap == 0 ? 1.0 : power_of_two(-(gap / half_life));
}

// A sum without error until it is rounded, once: parts that do not touch, and what overflows them
// (Shewchuk, "Adaptive precision floating-point arithmetic and fast robust geometric predicates",
// 1997).
class ExactSum {
  public:
    void add(double x) {
        if (!std::isfinite(x)) {
            other_ += x;
            return;
        }
        int kept = 0;
        for (int i = 0; i < size_; ++i) {
            double y = parts_[i];
            if (std::fabs(x) < std::fabs(y)) std::swap(x, y);
            double sum = x + y;
            if (!std::isfinite(sum)) {  // 2^1023 <= |x|, so that nothing is lost here
                const double half = std::copysign(0x1p1023, x);
                overflows_ += x > 0 ? 1 : -1;
                x = x - half - half;
                if (std::fabs(x) < std::fabs(y)) std::swap(x, y);
                sum = x + y;
            }
            const double error = y - (sum - x);
            if (error != 0) parts_[kept++] = error;
            x = sum;
        }
        parts_[kept++] = x;
        size_ = kept;
    }
    double rounded() const {
        if (other_ != 0 || other_ != other_) return other_;
        // At half the scale 2^1024 is a double. Where it counts, what halving rounds is too small
        // to matter but for its sign.
        const double scale = overflows_ ? 0.5 : 1.0;
        double sum = static_cast<double>(overflows_) * 0x1p1023, error = 0;
        int i = size_;
        while (error == 0 && i > 0) {
            const double before = sum, part = scale * parts_[--i];
            sum = before + part;
            error = part - (sum - before);
        }
        // Half way between two doubles, what is below decides.
        if (i > 0 && (error < 0) == (parts_[i - 1] < 0) && error != 0) {
            const double twice = 2 * error, up = sum + twice;
            if (twice == up - sum) sum = up;
        }
        return sum / scale;
    }

    // Calls body(x) for numbers that are this sum together.
    template <class Body>
    void each_term(const Body& body) const {
        for (int i = 0; i < size_; ++i) body(parts_[i]);
        for (int64_t i = 0; i < 2 * std::abs(overflows_); ++i)
            body(std::copysign(0x1p1023, static_cast<double>(overflows_)));
        if (other_ != 0 || other_ != other_) body(other_);
    }

  private:
    // All doubles together have 2098 bits. A part takes one at least, and the next is left free;
    // the largest may be 0.
    double parts_[2098 / 2 + 1];
    int size_ = 0;
    int64_t overflows_ = 0;  // of 2^1024
    double other_ = 0;       // infinities and NaN
};

double dot(const double* q, const double* x, int64_t n) {
    double part[8] = {};  // a fixed order that is eight wide
    int64_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int k = 0; k < 8; ++k) part[k] += q[j + k] * x[j + k];
    for (int k = 0; j + k < n; ++k) part[k] += q[j + k] * x[j + k];
    return ((part[0] + part[4]) + (part[2] + part[6])) +
           ((part[1] + part[5]) + (part[3] + part[7]));
}

// --- the order of a log ----------------------------------------------------------------------

// A double or float as an integer of the same order, NaN too.
template <class I, class T>
I ordered(T x) {
    const I bits = std::bit_cast<I>(x);
    return bits ^ ((bits >> (8 * sizeof(I) - 1)) & std::numeric_limits<I>::max());
}

template <class I, class T>
int compare_rows(const T* a, const T* b, int64_t width) {
    for (int64_t j = 0; j < width; ++j) {
        const I x = ordered<I>(a[j]), y = ordered<I>(b[j]);
        if (x != y) return x < y ? -1 : 1;
    }
    return 0;
}

struct Before {
    const EventColumns& columns;
    const EventTable& table;

    bool operator()(const Event& a, const Event& b) const {
        if (a.time != b.time) return a.time < b.time;
        if (columns.tie && columns.tie[a.source] != columns.tie[b.source])
            return columns.tie[a.source] < columns.tie[b.source];
        if (columns.row) {
            if (a.row != b.row) return a.row < b.row;
        } else if (table.values) {
            const int order = table.wide ? rows<int64_t, double>(a, b) : rows<int32_t, float>(a, b);
            if (order != 0) return order < 0;
        }
        if (columns.weight) {
            const auto x = ordered<int64_t>(columns.weight[a.source]),
                       y = ordered<int64_t>(columns.weight[b.source]);
            if (x != y) return x < y;
        }
        return columns.known && columns.known[a.source] < columns.known[b.source];
    }
    template <class I, class T>
    int rows(const Event& a, const Event& b) const {
        const T* at = static_cast<const T*>(table.values);
        return compare_rows<I>(at + a.row * table.width, at + b.row * table.width, table.width);
    }
};

inline uint64_t mixed(int64_t key) {
    uint64_t x = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15;
    return x ^ (x >> 32);
}

// Ends of parts of like work, given the work of each element.
template <class Work>
std::vector<int64_t> even_parts(int64_t elements, int64_t parts, const Work& work) {
    int64_t total = 0;
    for (int64_t i = 0; i < elements; ++i) total += work(i);
    std::vector<int64_t> ends;
    int64_t done = 0;
    for (int64_t i = 0; i < elements; ++i) {
        done += work(i);
        if (done * parts >= total * (static_cast<int64_t>(ends.size()) + 1)) ends.push_back(i + 1);
    }
    if (ends.empty() || ends.back() != elements) ends.push_back(elements);
    return ends;
}

template <class Body>
void each_part(const std::vector<int64_t>& ends, int threads, int64_t bytes, const Body& body) {
    parallel_for(static_cast<int64_t>(ends.size()), threads, bytes, 0,
                 [&](int64_t first, int64_t last, void*) {
                     if (first < last) body(first ? ends[first - 1] : 0, ends[last - 1]);
                 });
}

constexpr int64_t kParts = 8;  // for each thread

}  // namespace

EventLog::EventLog(const EventColumns& columns, const EventTable& table, const int64_t* keys,
                   int64_t key_count, const std::vector<const EventSummary*>& summaries,
                   int threads)
    : table_(table) {
    const int64_t n = columns.events;
    for (const EventSummary* summary : summaries)
        for (size_t i = 0; i < summary->nodes.size(); ++i)
            carried_.push_back({summary, static_cast<int64_t>(i), 0});
    const int64_t places = 2 * static_cast<int64_t>(carried_.size());
    const uint64_t room = std::bit_ceil(static_cast<uint64_t>(2 * key_count + 2));
    hashed_.resize(room);
    slots_.assign(room, -1);
    int32_t used = 0;
    for (int64_t i = 0; i < key_count; ++i) {
        uint64_t at = mixed(keys[i]) & (room - 1);
        while (slots_[at] >= 0 && hashed_[at] != keys[i]) at = (at + 1) & (room - 1);
        if (slots_[at] >= 0) continue;
        hashed_[at] = keys[i];
        slots_[at] = used++;
    }
    if (places && used != 1) throw std::invalid_argument("summaries are of one key");

    // Events by their slots, in the order in which they were given.
    std::vector<int32_t> slot(n);
    parallel_for(n, threads, n * 16, 0, [&](int64_t first, int64_t last, void*) {
        for (int64_t e = first; e < last; ++e)
            slot[e] = static_cast<int32_t>(slot_of(columns.key[e]));
    });
    begin_.assign(used + 1, 0);
    for (int64_t e = 0; e < n; ++e)
        if (slot[e] >= 0) ++begin_[slot[e] + 1];
    for (int32_t s = 0; s < used; ++s) begin_[s + 1] += begin_[s];
    if (places) begin_[1] += places;
    const int64_t kept = begin_[used];
    sorted_.resize(kept);
    {
        std::vector<int64_t> at(begin_.begin(), begin_.end() - 1);
        for (int64_t e = 0; e < n; ++e)
            if (slot[e] >= 0)
                sorted_[at[slot[e]]++] = {columns.time[e], columns.row ? columns.row[e] : e, e};
        for (int64_t p = 0; p < places; ++p) {
            const EventSummary::Node& of = node(-1 - p);
            sorted_[kept - places + p] = {p % 2 ? of.last_time : of.first_time, 0, -1 - p};
        }
    }

    level_.resize(kept);
    if (columns.weight) weight_.resize(kept);
    if (columns.known) {
        known_.resize(kept);
        latest_.resize(kept);
        rank_.resize(kept);
    }
    const Before before{columns, table};
    const auto ends = even_parts(used, kParts * threads,
                                 [&](int64_t s) { return 1 + begin_[s + 1] - begin_[s]; });
    each_part(ends, threads, kept * 32, [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s) {
            const auto from = sorted_.begin() + begin_[s], to = sorted_.begin() + begin_[s + 1];
            if (!std::is_sorted(from, to - places, before)) std::sort(from, to - places, before);
            if (places)
                std::inplace_merge(from, to - places, to,
                                   [](const Event& a, const Event& b) { return a.time < b.time; });
            int64_t rank = 0;
            for (int64_t e = begin_[s]; e < begin_[s + 1]; ++e) {
                const bool leads = e == begin_[s];
                const int64_t earlier = leads ? 0 : sorted_[e - 1].time, time = sorted_[e].time;
                const int64_t source = sorted_[e].source;
                const bool event = source >= 0;
                int64_t next = !leads && earlier == time ? rank + 1 : 0;
                if (!event) next = source % 2 ? node(source).first_rank : node(source).last_rank;
                level_[e] = leads ? kNone : level_between(earlier, rank, time, next);
                rank = next;
                if (columns.weight && event) weight_[e] = columns.weight[source];
                if (!columns.known) continue;
                rank_[e] = rank;
                known_[e] = event ? columns.known[source] : std::numeric_limits<int64_t>::min();
                latest_[e] = leads ? known_[e] : std::max(latest_[e - 1], known_[e]);
            }
        }
    });
    span_known();
    if (!places) return;
    events_before_.assign(kept + 1, 0);
    for (int64_t e = 0; e < kept; ++e) {
        const int64_t source = sorted_[e].source;
        const int64_t events = source >= 0 ? 1 : source % 2 ? node(source).events : 0;
        events_before_[e + 1] = events_before_[e] + events;
        if (source < 0 && source % 2) carried_[CarriedNode::of(source)].place = e;
    }
}

// The least and the most of every kSpan, and of every kSpan of these.
void EventLog::span_known() {
    int64_t count = static_cast<int64_t>(known_.size());
    while (count > kSpan) {
        const int64_t below = count;
        count = (below + kSpan - 1) / kSpan;
        std::vector<Span> spans(
            count, {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()});
        for (int64_t i = 0; i < below; ++i) {
            const Span of = spans_.empty() ? Span{known_[i], known_[i]} : spans_.back()[i];
            Span& span = spans[i / kSpan];
            span = {std::min(span.least, of.least), std::max(span.most, of.most)};
        }
        spans_.push_back(std::move(spans));
    }
}

int64_t EventLog::slot_of(int64_t key) const {
    const uint64_t mask = slots_.size() - 1;
    uint64_t at = mixed(key) & mask;
    while (slots_[at] >= 0 && hashed_[at] != key) at = (at + 1) & mask;
    return slots_[at];
}

// The first of events [from, until) that is known by a time or, if `hidden`, that is not; `until`
// if there is none.
int64_t EventLog::next(int64_t from, int64_t until, int64_t time, bool hidden) const {
    const auto holds = [&](const Span& known) {
        return hidden ? known.most > time : known.least <= time;
    };
    while (from < until && !holds({known_[from], known_[from]})) {
        int64_t skipped = 1, size = kSpan;
        for (const auto& spans : spans_) {
            if (from % size != 0 || holds(spans[from / size])) break;
            skipped = size;
            size *= kSpan;
        }
        from += skipped;
    }
    return std::min(from, until);
}

// What the queries of one item see. Events [first, clean) of a view are all known in time, and
// `tail` lists stretches of those behind that are, as a late event hides among its neighbours.
class EventRanges {
  public:
    // So many of the events of its time, in front of it, are hidden. If any, it has one time.
    struct Stretch {
        int64_t begin, end, hidden;
    };
    struct Range {
        int64_t first, clean, tail, tail_end, count;
    };

    // Takes queries, until the lists are long, and returns how many. Slot -1 has no events.
    int64_t fill(const EventLog& log, int64_t slot, const EventQueries& queries,
                 const int64_t* order, int64_t count, const EventView* views, int64_t view_count) {
        ranges.clear();
        tail.clear();
        first = last = seen = 0;
        int64_t taken = 0;
        while (taken < count && tail.size() < kListed)
            add(log, slot, queries, order[taken++], views, view_count);
        return taken;
    }

    // Calls body(begin, end, hidden) for the stretches of a range.
    template <class Body>
    void each_stretch(const Range& range, const Body& body) const {
        if (range.first < range.clean) body(range.first, range.clean, 0);
        for (int64_t i = range.tail; i < range.tail_end; ++i)
            body(std::max(tail[i].begin, range.first), tail[i].end, tail[i].hidden);
    }

    std::vector<Range> ranges;  // (queries, views)
    std::vector<Stretch> tail;
    int64_t first, last, seen;  // of all: the events, and how often they are seen

    // The first event at a time or later.
    static int64_t position(const EventLog& log, int64_t begin, int64_t end, int64_t time) {
        const auto at =
            std::lower_bound(log.sorted_.begin() + begin, log.sorted_.begin() + end, time,
                             [](const Event& e, int64_t t) { return e.time < t; });
        return at - log.sorted_.begin();
    }

  private:
    static constexpr size_t kListed = 1 << 16;

    // Of one query, one range for each view.
    void add(const EventLog& log, int64_t slot, const EventQueries& queries, int64_t query,
             const EventView* views, int64_t count) {
        const int64_t begin = slot < 0 ? 0 : log.begin_[slot];
        const int64_t end = slot < 0 ? 0 : log.begin_[slot + 1];
        const int64_t time = queries.time[query];
        const int64_t until = position(log, begin, end, time);
        int64_t clean = until;
        if (!log.latest_.empty())
            clean =
                std::upper_bound(log.latest_.begin() + begin, log.latest_.begin() + until, time) -
                log.latest_.begin();
        const size_t at = ranges.size();
        int64_t earliest = until;
        for (int64_t v = 0; v < count; ++v) {
            const int64_t* from = views[v].begin;
            const int64_t a = from ? position(log, begin, until, from[query]) : begin;
            earliest = std::min(earliest, a);
            ranges.push_back({a, std::max(a, clean), 0, 0, 0});
        }
        const int64_t listed = static_cast<int64_t>(tail.size());
        if (clean < until) list(log, std::max(clean, earliest), clean - 1, begin, until, time);
        for (int64_t v = 0; v < count; ++v) {
            Range& range = ranges[at + v];
            range.tail_end = static_cast<int64_t>(tail.size());
            range.tail = listed;
            while (range.tail < range.tail_end && tail[range.tail].end <= range.first) ++range.tail;
            each_stretch(range,
                         [&](int64_t a, int64_t b, int64_t) { range.count += log.count(a, b); });
            if (views[v].last) drop(log, range, range.count - views[v].last);
            if (range.count == 0) continue;
            const bool listed_only = range.first >= range.clean;
            const int64_t a =
                listed_only ? std::max(range.first, tail[range.tail].begin) : range.first;
            first = seen ? std::min(first, a) : a;
            last = std::max(last, range.tail < range.tail_end ? tail.back().end : range.clean);
            seen += range.count;
        }
    }

    // The stretches of [from, until) that are known by a time; `before` is the last event that is
    // seen in front of them, if it is not less than `begin`.
    void list(const EventLog& log, int64_t from, int64_t before, int64_t begin, int64_t until,
              int64_t time) {
        int64_t hidden = 0;
        while ((from = log.next(from, until, time, false)) < until) {
            const int64_t end = log.next(from, until, time, true), now = log.sorted_[from].time;
            hidden = before >= begin && log.sorted_[before].time == now ? hidden + from - before - 1
                                                                        : log.rank_[from];
            if (hidden) {
                int64_t other = from + 1;
                while (other < end && log.sorted_[other].time == now) ++other;
                tail.push_back({from, other, hidden});
                from = other;
            }
            if (from < end) {
                tail.push_back({from, end, 0});
                hidden = 0;
            }
            before = end - 1;
            from = end;
        }
    }

    // The oldest of a range, so many.
    void drop(const EventLog& log, Range& range, int64_t surplus) const {
        if (surplus <= 0) return;
        range.count -= surplus;
        const int64_t dropped = std::min(surplus, log.count(range.first, range.clean));
        range.first = log.behind(range.first, dropped);
        for (surplus -= dropped; surplus > 0;) {
            const Stretch& oldest = tail[range.tail];
            const int64_t a = std::max(oldest.begin, range.first);
            range.first = log.behind(a, std::min(surplus, log.count(a, oldest.end)));
            surplus -= log.count(a, range.first);
            if (range.first == oldest.end) ++range.tail;
        }
    }
};

// The trie over the times of events [first, last) of one key, of which queries see more and more,
// as these ask by their times. An event that comes to be seen changes the nodes above it alone;
// their states are made when a query wants them. A leaf has few events, or those of one time, whose
// ranks are those among the ones seen.
class KnownTrie {
  public:
    struct Range {
        int64_t first, count;  // what is seen from an event on, and how many these are
    };

    // For queries of one key, by their times.
    KnownTrie(const EventLog& log, int64_t slot, const EventQueries& queries, const int64_t* order,
              int64_t count, const std::vector<EventView>& views)
        : log_(log), times_(queries.time), order_(order), queries_(count) {
        const int64_t begin = log.begin_[slot], end = log.begin_[slot + 1];
        first_ = last_ = end;
        for (int64_t q = 0, until = begin; q < count; ++q) {
            until = last_ = EventRanges::position(log, until, end, time(q));
            for (const EventView& view : views) {
                const int64_t* from = view.begin;
                const int64_t a =
                    from ? EventRanges::position(log, begin, until, from[order[q]]) : begin;
                first_ = std::min(first_, a);
                ranges_.push_back({a, 0});
            }
        }
        const int64_t bytes = 2 * (last_ - first_) * (2 * log.table_.width + 1) * 8;
        add(first_, last_, std::max(2 * kSmallest, bytes / kKeptBytes));
        for (int64_t e = first_; e < last_; ++e)
            if (due(e) > time(0)) late_.push_back(e);
        std::sort(late_.begin(), late_.end(),
                  [&](int64_t a, int64_t b) { return due(a) != due(b) ? due(a) < due(b) : a < b; });
        size_t at = 0;
        each_query(0, [&](int64_t q) {
            for (const EventView& view : views) {
                Range& range = ranges_[at++];
                if (view.last) range.first = std::max(range.first, place_of_last(view.last));
                range.count = view.count[order[q]] = events_from(range.first);
            }
        });
    }

    int64_t first() const { return first_; }
    int64_t last() const { return last_; }
    const Range& range(int64_t q, int64_t view) const {
        return ranges_[q * (ranges_.size() / queries_) + view];
    }
    // Calls body(q) when what query q sees is in the trie; with states of a size.
    template <class Body>
    void each_query(int64_t size, const Body& body) {
        restart(size);
        for (int64_t q = 0; q < queries_; ++q) {
            advance(time(q));
            body(q);
        }
    }

    // The state of what is seen from a place on, or null if that is nothing.
    template <class Family>
    const double* state(Fold<Family>& fold, const Family& family, NodeStore& nodes, int64_t from,
                        int64_t v = 0) {
        const Node& node = nodes_[v];
        if (node.events == 0) return nullptr;
        if (from <= node.first) return whole(fold, family, nodes, v);
        if (!node.right) return leaf(fold, nodes, node, from);
        const Node& right = nodes_[node.right];
        if (from >= right.first) return state(fold, family, nodes, from, node.right);
        const double* b = right.events ? whole(fold, family, nodes, node.right) : nullptr;
        const double* a = state(fold, family, nodes, from, v + 1);  // last, as it is in a slot
        if (!a || !b) return a ? a : b;
        family.merge(nodes.slot(0), a, b, ticks(nodes_[v + 1].latest, right.latest));
        return nodes.slot(0);
    }

  private:
    // The left child is the next.
    struct Node {
        int64_t first, last;
        int64_t right;           // the other child, or 0: a leaf
        int64_t events, latest;  // that are seen: how many, and the time of the last
        bool stale;
    };

    // The node of events [first, last), parted at the highest bit in which their times differ.
    int64_t add(int64_t first, int64_t last, int64_t grain) {
        const int64_t v = static_cast<int64_t>(nodes_.size());
        nodes_.push_back({first, last, 0, 0, 0, true});
        if (last - first <= grain) return v;
        const auto events = log_.sorted_.begin();
        const auto apart = [&](const Event& e) {
            return static_cast<uint64_t>(e.time) ^ static_cast<uint64_t>(events[first].time);
        };
        const uint64_t highest = std::bit_floor(apart(events[last - 1]));
        if (highest == 0) return v;
        const int64_t middle =
            std::partition_point(events + first, events + last,
                                 [&](const Event& e) { return apart(e) < highest; }) -
            events;
        add(first, middle, grain);
        const int64_t right = add(middle, last, grain);
        nodes_[v].right = right;
        return v;
    }
    // Back to the first query.
    void restart(int64_t size) {
        size_ = size;
        states_.reset(new double[nodes_.size() * size]);  // not set
        time_ = time(0);
        next_ = 0;
        for (int64_t v = static_cast<int64_t>(nodes_.size()) - 1; v >= 0; --v) {
            Node& node = nodes_[v];
            node.stale = true;
            node.events = 0;
            if (node.right) {
                const Node &a = nodes_[v + 1], &b = nodes_[node.right];
                node.events = a.events + b.events;
                node.latest = b.events ? b.latest : a.latest;
            } else {
                for (int64_t e = node.first; e < node.last; ++e)
                    if (seen(e)) take(node, e);
            }
        }
    }
    void advance(int64_t time) {
        time_ = time;
        for (; next_ < late_.size() && due(late_[next_]) <= time; ++next_) {
            const int64_t e = late_[next_];
            int64_t v = 0;
            for (; nodes_[v].right; v = below(v, e)) take(nodes_[v], e);
            take(nodes_[v], e);
        }
    }

    // How many events are seen from a place on.
    int64_t events_from(int64_t from) const {
        int64_t v = 0, events = 0;
        while (from > nodes_[v].first && nodes_[v].right) {
            const int64_t right = nodes_[v].right;
            v = below(v, from);
            if (v != right) events += nodes_[right].events;
        }
        if (from <= nodes_[v].first) return events + nodes_[v].events;
        for (int64_t e = from; e < nodes_[v].last; ++e)
            if (seen(e)) events += log_.count(e, e + 1);
        return events;
    }
    // From where on the last so many are seen, or all if these are fewer.
    int64_t place_of_last(int64_t events) const {
        if (nodes_[0].events <= events) return nodes_[0].first;
        int64_t v = 0;
        while (nodes_[v].right) {
            const Node& right = nodes_[nodes_[v].right];
            if (right.events < events) {
                events -= right.events;
                ++v;
            } else {
                v = nodes_[v].right;
            }
        }
        int64_t e = nodes_[v].last;
        while (events > 0)
            if (seen(--e)) events -= log_.count(e, e + 1);
        return e;
    }
    int64_t below(int64_t v, int64_t e) const {
        return e < nodes_[nodes_[v].right].first ? v + 1 : nodes_[v].right;
    }
    // The first time of a query that sees an event, which is not the last of all times.
    int64_t due(int64_t e) const { return std::max(log_.known_[e], log_.sorted_[e].time + 1); }
    bool seen(int64_t e) const { return due(e) <= time_; }
    void take(Node& node, int64_t e) const {
        const int64_t time = log_.sorted_[e].time;
        node.latest = node.events ? std::max(node.latest, time) : time;
        node.events += log_.count(e, e + 1);
        node.stale = true;
    }

    // The state of what is seen of a node, which is something.
    template <class Family>
    const double* whole(Fold<Family>& fold, const Family& family, NodeStore& nodes, int64_t v) {
        while (nodes_[v].right) {  // down to where two are seen that part
            const int64_t right = nodes_[v].right;
            if (nodes_[v + 1].events && nodes_[right].events) break;
            v = nodes_[right].events ? right : v + 1;
        }
        Node& node = nodes_[v];
        double* out = states_.get() + v * size_;
        if (!node.stale) return out;
        node.stale = false;
        if (node.right) {
            const double* a = whole(fold, family, nodes, v + 1);
            const double* b = whole(fold, family, nodes, node.right);
            family.merge(out, a, b, ticks(nodes_[v + 1].latest, nodes_[node.right].latest));
        } else {
            std::copy_n(leaf(fold, nodes, node, node.first), size_, out);
        }
        return out;
    }
    // What is seen of a leaf from a place on, which may be nothing.
    template <class Family>
    const double* leaf(Fold<Family>& fold, const NodeStore& nodes, const Node& of, int64_t from) {
        const std::vector<Event>& events = log_.sorted_;
        fold.restart();
        int64_t before = -1, rank_before = 0, hidden = 0;
        for (int64_t e = of.first; e < of.last;) {
            if (e == of.first || events[e].time != events[e - 1].time) hidden = 0;
            if (!seen(e)) {
                ++hidden;
                ++e;
                continue;
            }
            const NodeStore::Node* node = nodes.find(e, of.last);
            const int64_t next = node ? node->end : e + 1;
            if (e >= from) {
                const uint8_t level = before < 0
                                          ? kNone
                                          : level_between(events[before].time, rank_before,
                                                          events[e].time, log_.rank_[e] - hidden);
                fold.push(e, next, node ? node->state : nullptr, level);
                before = next - 1;
                rank_before = log_.rank_[before] - hidden;
            }
            e = next;
        }
        return before < 0 ? nullptr : fold.finish();
    }

    int64_t time(int64_t q) const { return times_[order_[q]]; }

    const EventLog& log_;
    const int64_t *times_, *order_;
    const int64_t queries_;
    int64_t first_, last_;
    std::vector<Range> ranges_;  // (queries, views)
    int64_t size_ = 0, time_ = 0;
    size_t next_ = 0;            // of those that are late
    std::vector<int64_t> late_;  // events that the first query does not see, as they come
    std::vector<Node> nodes_;
    std::unique_ptr<double[]> states_;  // a node's is there where two parts of it are seen, or it
                                        // is a leaf
};

// Calls body(first, last) of `order`: queries of one key, by their times. Those of a key with much
// to do are several items, for several threads.
template <class Body>
void EventLog::each_item(const EventQueries& queries, int64_t views, int threads,
                         const Body& body) const {
    const int64_t n = queries.queries, slots = static_cast<int64_t>(begin_.size()) - 1;
    std::vector<int64_t> begin(slots + 2, 0), order(n);
    std::vector<int32_t> slot(n);
    for (int64_t q = 0; q < n; ++q) {
        slot[q] = static_cast<int32_t>(slot_of(queries.key[q]));
        ++begin[slot[q] + 2];  // what has no events comes first
    }
    for (int64_t s = 0; s <= slots; ++s) begin[s + 1] += begin[s];
    {
        std::vector<int64_t> at(begin.begin(), begin.end());
        for (int64_t q = 0; q < n; ++q) order[at[slot[q] + 1]++] = q;
    }
    const auto work = [&](int64_t s) {
        return s == 0 ? begin[1]
                      : 64 + begin_[s] - begin_[s - 1] + 16 * views * (begin[s + 1] - begin[s]);
    };
    int64_t total = 1;
    for (int64_t s = 0; s <= slots; ++s) total += work(s);
    struct Item {
        int64_t slot, first, last, work;
    };
    std::vector<Item> items;
    for (int64_t s = 0; s <= slots; ++s) {
        const int64_t first = begin[s], count = begin[s + 1] - first;
        const int64_t pieces = threads > 1 ? std::clamp<int64_t>(work(s) * 4 * threads / total, 1,
                                                                 std::max<int64_t>(count, 1))
                                           : 1;
        for (int64_t p = 0; p < pieces && count; ++p)
            items.push_back({s - 1, first + count * p / pieces, first + count * (p + 1) / pieces,
                             work(s) / pieces});
    }
    // Queries of one key by time, before the pieces part them.
    const auto ends = even_parts(static_cast<int64_t>(items.size()), kParts * threads,
                                 [&](int64_t i) { return items[i].work; });
    each_part(even_parts(slots + 1, kParts * threads,
                         [&](int64_t s) { return 1 + begin[s + 1] - begin[s]; }),
              threads, n * 16, [&](int64_t from, int64_t to) {
                  for (int64_t s = from; s < to; ++s)
                      std::sort(order.begin() + begin[s], order.begin() + begin[s + 1],
                                [&](int64_t a, int64_t b) {
                                    return queries.time[a] != queries.time[b]
                                               ? queries.time[a] < queries.time[b]
                                               : a < b;
                                });
              });
    each_part(ends, threads, (n + total) * 64, [&](int64_t from, int64_t to) {
        EventRanges ranges;
        NodeStore nodes;
        for (int64_t i = from; i < to; ++i)
            body(items[i].slot, order.data() + items[i].first, items[i].last - items[i].first,
                 ranges, nodes);
    });
}

namespace {

// Builds the nodes of the events that the item sees, unless they are seen about once.
template <class Family>
void build(const Family& family, const EventRanges& seen, const uint8_t* level,
           const std::vector<NodeStore::Carried>& carried, NodeStore& nodes, bool worthwhile) {
    const int64_t events = seen.last - seen.first;
    const int64_t bytes = 2 * events * family.size() * 8;
    const int64_t grain = std::max(kSmallest, bytes / kKeptBytes);
    nodes.reset(seen.first, seen.last, worthwhile ? grain : events + 1, family.size(), carried);
    if (!worthwhile || grain > events) return;
    Fold<Family> fold(family, family.events, nodes);
    for (int64_t e = seen.first; e < seen.last;) {
        if (e + kAhead < seen.last) family.fetch(e + kAhead);
        const NodeStore::Node* node = carried.empty() ? nullptr : nodes.find(e, seen.last);
        const double* state = node ? node->state : nullptr;
        const int64_t next = node ? node->end : e + 1;
        fold.template push<true>(e, next, state, e == seen.first ? kNone : level[e]);
        e = next;
    }
    // What is left unmerged has no end yet: events that a query sees beyond may belong to it.
}

// The state of one range, which is not empty.
template <class Family>
const double* fold_range(Fold<Family>& fold, const Family& family, const EventRanges& seen,
                         const EventRanges::Range& range, const uint8_t* level,
                         const std::vector<int64_t>& ranks, const NodeStore& nodes) {
    fold.restart();
    int64_t before = -1, hidden_before = 0;
    seen.each_stretch(range, [&](int64_t begin, int64_t end, int64_t hidden) {
        const auto border = [&](int64_t a, int64_t hidden_a, int64_t b) {
            return level_between(family.events[a].time, ranks[a] - hidden_a, family.events[b].time,
                                 ranks[b] - hidden);
        };
        uint8_t in_front = before < 0 ? kNone : border(before, hidden_before, begin);
        for (int64_t e = begin; e < end;) {
            const NodeStore::Node* node = hidden ? nullptr : nodes.find(e, end);
            const int64_t next = node ? node->end : e + 1;
            fold.push(e, next, node ? node->state : nullptr, in_front);
            e = next;
            if (e < end) in_front = hidden ? border(e - 1, hidden, e) : level[e];
        }
        before = end - 1;
        hidden_before = hidden;
    });
    return fold.finish();
}

enum class Kind { sum, mean, max, min, std, decay, attend, exact_sum, exact_mean };

Kind kind_of(const std::string& name) {
    static const char* const names[] = {"sum",   "mean",   "max",       "min",       "std",
                                        "decay", "attend", "exact sum", "exact mean"};
    for (int i = 0; i < 9; ++i)
        if (name == names[i]) return static_cast<Kind>(i);
    throw std::invalid_argument("no such kernel");
}

struct Task {
    Kind kind;
    const EventJob* job;
};

bool is_folded(Kind kind) { return kind < Kind::attend; }
bool is_exact(Kind kind) { return kind == Kind::exact_sum || kind == Kind::exact_mean; }

// The kind whose states are those of a kind.
Kind family_of(Kind kind) {
    return kind == Kind::mean ? Kind::sum : kind == Kind::exact_mean ? Kind::exact_sum : kind;
}

// Calls body(family) for a kind that folds.
template <class T, class Body>
void with_family(const Values<T>& values, Kind kind, double parameter, const Body& body) {
    switch (family_of(kind)) {
        case Kind::sum:
            if (values.weights) return body(Additive<T, true>{values});
            return body(Additive<T, false>{values});
        case Kind::max:
            return body(Extreme<T, true>{values});
        case Kind::min:
            return body(Extreme<T, false>{values});
        case Kind::std:
            return body(Centred<T>{values});
        case Kind::decay:
            if (values.weights) return body(Decayed<T, true>{{values}, parameter});
            return body(Decayed<T, false>{{values}, parameter});
        default:
            throw std::invalid_argument("no reduction that folds");
    }
}

// What the summaries of a log have of a kind, by their places in the log.
std::vector<NodeStore::Carried> carried_states(const std::vector<CarriedNode>& carried, Kind kind,
                                               double parameter, int64_t width) {
    std::vector<NodeStore::Carried> states;
    if (kind == Kind::attend) return states;
    for (const CarriedNode& node : carried) {
        const auto& all = node.summary->states;
        const auto found = std::find_if(all.begin(), all.end(), [&](const auto& of) {
            return kind_of(of.reduction) == family_of(kind) && of.parameter == parameter;
        });
        if (found == all.end()) throw std::invalid_argument("summaries of other reductions");
        const int64_t begin = found->begin[node.node], end = found->begin[node.node + 1];
        states.push_back({node.place, found->values.data() + begin, (end - begin) / (width + 1)});
    }
    return states;
}

// Calls add(x) for the numbers that an exact sum has of an event: in column j or, if that is the
// width, weights.
template <class T, class Add>
void each_exact(const Values<T>& values, const std::vector<NodeStore::Carried>& carried,
                int64_t event, int64_t j, const Add& add) {
    const int64_t source = values.events[event].source, n = values.width;
    if (source >= 0) {
        const double weight = values.weight(event);
        add(j < n ? weight * values.row(event)[j] : weight);
    } else if (source % 2) {
        const NodeStore::Carried& node = carried[CarriedNode::of(source)];
        for (int64_t i = 0; i < node.rows; ++i) add(node.state[i * (n + 1) + j]);
    }
}

// The result of a state.
template <class T>
void finish(Kind kind, int64_t n, T* out, const double* state) {
    if (kind == Kind::max || kind == Kind::min) {
        for (int64_t j = 0; j < n; ++j) out[j] = static_cast<T>(state[j]);
    } else if (kind == Kind::std) {
        const double weight = state[2 * n];
        for (int64_t j = 0; j < n; ++j)
            out[j] = static_cast<T>(weight == 0 ? 0.0 : std::sqrt(state[n + j] / weight));
    } else {
        const double divisor = kind == Kind::sum ? 1.0 : state[n];
        for (int64_t j = 0; j < n; ++j)
            out[j] = static_cast<T>(divisor == 0 ? 0.0 : state[j] / divisor + 0.0);
    }
}

// Everything about the queries of one item but what is done with them.
template <class T>
struct Item {
    Values<T> values;
    const EventRanges& seen;
    const uint8_t* level;
    const std::vector<int64_t>& ranks;
    NodeStore& nodes;
    const int64_t* queries;
    int64_t count, views;
    const std::vector<NodeStore::Carried>& carried;

    // For tasks that share their states.
    template <class Family>
    void fold(const Family& family, const Task* tasks, int64_t task_count) const {
        build(family, seen, level, carried, nodes, seen.seen > 2 * (seen.last - seen.first));
        Fold<Family> parts(family, family.events, nodes);
        for (int64_t q = 0; q < count; ++q)
            for (int64_t t = 0; t < task_count; ++t) {
                const EventJob& job = *tasks[t].job;
                const auto& range = seen.ranges[q * views + job.view];
                T* out = static_cast<T*>(job.out) + queries[q] * values.width;
                if (range.count == 0) {
                    std::memset(out, 0, values.width * sizeof(T));
                    continue;
                }
                const double* state = fold_range(parts, family, seen, range, level, ranks, nodes);
                finish(tasks[t].kind, values.width, out, state);
            }
    }

    template <class Body>
    void each_event(const EventRanges::Range& range, const Body& body) const {
        seen.each_stretch(range, [&](int64_t begin, int64_t end, int64_t) {
            for (int64_t e = begin; e < end; ++e) {
                if (e + kAhead < end) values.fetch(e + kAhead);
                body(e);
            }
        });
    }

    void exact(const Task& task) const {
        const EventJob& job = *task.job;
        for (int64_t q = 0; q < count; ++q) {
            const auto& range = seen.ranges[q * views + job.view];
            T* out = static_cast<T*>(job.out) + queries[q] * values.width;
            const auto rounded = [&](int64_t j) {
                ExactSum sum;
                each_event(range, [&](int64_t e) {
                    each_exact(values, carried, e, j, [&](double x) { sum.add(x); });
                });
                return sum.rounded();
            };
            const double weight = task.kind == Kind::exact_sum ? 1.0 : rounded(values.width);
            const double divisor = weight == 0 ? 1.0 : weight;
            for (int64_t j = 0; j < values.width; ++j)
                out[j] = static_cast<T>(rounded(j) / divisor);
        }
    }

    // Softmax of the scores, and the mean by these weights, from the oldest event on.
    void attend(const EventJob& job) const {
        std::vector<double> scores, row(values.width), sum(values.width);
        for (int64_t q = 0; q < count; ++q) {
            const auto& range = seen.ranges[q * views + job.view];
            T* out = static_cast<T*>(job.out) + queries[q] * values.width;
            const double* query = job.other + queries[q] * values.width;
            scores.clear();
            double most = -std::numeric_limits<double>::infinity(), total = 0;
            each_event(range, [&](int64_t e) {
                std::copy(values.row(e), values.row(e) + values.width, row.begin());
                const double score = job.parameter * dot(query, row.data(), values.width);
                scores.push_back(score);
                if (values.weight(e) != 0 && (score > most || score != score)) most = score;
            });
            std::fill(sum.begin(), sum.end(), 0.0);
            const double* score = scores.data();
            each_event(range, [&](int64_t e) {
                const T* x = values.row(e);
                const double above = *score++ - most, weight = values.weight(e);
                const double w = weight == 0 ? 0.0 : weight * power_of_two(above * kLog2E);
                for (int64_t j = 0; j < values.width; ++j) sum[j] += w * x[j];
                total += w;
            });
            for (int64_t j = 0; j < values.width; ++j)
                out[j] = static_cast<T>(total == 0 ? 0.0 : sum[j] / total + 0.0);
        }
    }

    void run(const Task* tasks, int64_t task_count) const {
        const Kind kind = tasks[0].kind;
        if (kind == Kind::attend) {
            for (int64_t t = 0; t < task_count; ++t) attend(*tasks[t].job);
        } else if (is_exact(kind)) {
            for (int64_t t = 0; t < task_count; ++t) exact(tasks[t]);
        } else {
            with_family(values, kind, tasks[0].job->parameter,
                        [&](const auto& family) { fold(family, tasks, task_count); });
        }
    }
};

// The tasks of one family, for what a trie has of each query.
template <class T>
void fold_known(const Values<T>& values, KnownTrie& trie, const std::vector<Task>& tasks,
                const std::vector<NodeStore::Carried>& carried, const int64_t* queries,
                NodeStore& nodes) {
    with_family(values, tasks[0].kind, tasks[0].job->parameter, [&](const auto& family) {
        const int64_t first = trie.first(), last = trie.last();
        nodes.reset(first, last, last - first + 1, family.size(), carried);
        Fold parts(family, family.events, nodes);
        trie.each_query(family.size(), [&](int64_t q) {
            for (const Task& task : tasks) {
                const KnownTrie::Range& range = trie.range(q, task.job->view);
                T* out = static_cast<T*>(task.job->out) + queries[q] * values.width;
                if (range.count == 0) {
                    std::memset(out, 0, values.width * sizeof(T));
                    continue;
                }
                const double* state = trie.state(parts, family, nodes, range.first);
                finish(task.kind, values.width, out, state);
            }
        });
    });
}

// Tasks that fold the same states lie behind each other.
bool share(const Task& a, const Task& b) {
    return family_of(a.kind) == family_of(b.kind) && a.job->parameter == b.job->parameter;
}

// Calls body(rows) with the rows of a table in their dtype.
template <class Body>
void with_rows(const EventTable& table, const Body& body) {
    if (table.wide) return body(static_cast<const double*>(table.values));
    body(static_cast<const float*>(table.values));
}

// The states of the events between neighbouring borders.
template <class T>
void summarize(const Values<T>& values, Kind kind, double parameter,
               const std::vector<int64_t>& borders, const uint8_t* level,
               const std::vector<NodeStore::Carried>& carried, EventSummary::States& out) {
    const auto each_node = [&](const auto& body) {
        for (size_t i = 0; i + 1 < borders.size(); ++i) {
            body(borders[i], borders[i + 1]);
            out.begin.push_back(static_cast<int64_t>(out.values.size()));
        }
    };
    if (is_exact(kind)) {
        const int64_t columns = values.width + 1;
        std::vector<double> terms;
        each_node([&](int64_t begin, int64_t end) {
            const size_t at = out.values.size();
            for (int64_t j = 0; j < columns; ++j) {
                ExactSum sum;
                for (int64_t e = begin; e < end; ++e)
                    each_exact(values, carried, e, j, [&](double x) { sum.add(x); });
                terms.clear();
                sum.each_term([&](double x) { terms.push_back(x); });
                if (out.values.size() < at + terms.size() * columns)
                    out.values.resize(at + terms.size() * columns, 0.0);
                for (size_t i = 0; i < terms.size(); ++i)
                    out.values[at + i * columns + j] = terms[i];
            }
        });
        return;
    }
    with_family(values, kind, parameter, [&]<class Family>(const Family& family) {
        NodeStore nodes;
        const int64_t events = borders.back();
        nodes.reset(0, events, events + 1, family.size(), carried);
        Fold<Family> parts(family, family.events, nodes);
        each_node([&](int64_t begin, int64_t end) {
            parts.restart();
            for (int64_t e = begin; e < end;) {
                if (e + kAhead < end) family.fetch(e + kAhead);
                const NodeStore::Node* node = nodes.find(e, end);
                const int64_t next = node ? node->end : e + 1;
                parts.push(e, next, node ? node->state : nullptr, e == begin ? kNone : level[e]);
                e = next;
            }
            const double* state = parts.finish();
            out.values.insert(out.values.end(), state, state + family.size());
        });
    });
}

}  // namespace

void EventLog::pool(const EventQueries& queries, const std::vector<EventView>& views,
                    const std::vector<EventJob>& jobs, int threads) const {
    std::vector<std::vector<Task>> families;
    const int64_t element = table_.wide ? 8 : 4;
    for (const EventJob& job : jobs) {
        const Task task{kind_of(job.reduction), &job};
        ask_for_huge_pages(job.out, queries.queries * table_.width * element);
        const auto with = std::find_if(families.begin(), families.end(),
                                       [&](const auto& tasks) { return share(tasks[0], task); });
        if (with == families.end()) {
            families.push_back({task});
        } else {
            with->push_back(task);
        }
    }
    const size_t folded =
        std::stable_partition(families.begin(), families.end(),
                              [](const auto& tasks) { return is_folded(tasks[0].kind); }) -
        families.begin();
    std::vector<std::vector<NodeStore::Carried>> carried;
    for (const auto& tasks : families)
        carried.push_back(
            carried_states(carried_, tasks[0].kind, tasks[0].job->parameter, table_.width));
    const int64_t view_count = static_cast<int64_t>(views.size());
    const auto with_values = [&](const auto& body) {
        with_rows(table_, [&]<class T>(const T* table) {
            body(Values<T>{sorted_.data(), weight_.empty() ? nullptr : weight_.data(), table,
                           table_.width});
        });
    };
    each_item(queries, view_count, threads,
              [&](int64_t slot, const int64_t* order, int64_t count, EventRanges& ranges,
                  NodeStore& nodes) {
                  const auto pool_listed = [&](size_t family) {
                      const int64_t taken =
                          ranges.fill(*this, slot, queries, order, count, views.data(), view_count);
                      for (int64_t q = 0; q < taken; ++q)
                          for (int64_t v = 0; v < view_count; ++v)
                              views[v].count[order[q]] = ranges.ranges[q * view_count + v].count;
                      with_values([&]<class T>(const Values<T>& values) {
                          for (size_t f = family; f < families.size(); ++f) {
                              const auto& tasks = families[f];
                              const Item<T> item{values, ranges, level_.data(), rank_,     nodes,
                                                 order,  taken,  view_count,    carried[f]};
                              item.run(tasks.data(), static_cast<int64_t>(tasks.size()));
                          }
                      });
                      order += taken;
                      count -= taken;
                  };
                  pool_listed(0);
                  if (count == 0) return;
                  // All lists together would be the product of queries and stretches: they are
                  // for reductions that look at each event.
                  KnownTrie trie(*this, slot, queries, order, count, views);
                  with_values([&](const auto& values) {
                      for (size_t f = 0; f < folded; ++f)
                          fold_known(values, trie, families[f], carried[f], order, nodes);
                  });
                  while (folded < families.size() && count > 0) pool_listed(folded);
              });
}

EventSummary EventLog::summary(
    const std::vector<std::pair<std::string, double>>& reductions) const {
    if (begin_.size() > 2) throw std::invalid_argument("a summary is of one key");
    const int64_t events = static_cast<int64_t>(sorted_.size());
    const auto inside = [&](int64_t e) {
        return sorted_[e].source < 0 && sorted_[e].source % 2 == 0;
    };
    // Nodes end at the borders above which none lies in front of them, or none behind them: what
    // comes beyond may part them further.
    std::vector<uint8_t> ends(events + 1, false);
    ends[0] = ends[events] = true;
    const auto climb = [&](int64_t from, int64_t until, int64_t step) {
        for (int64_t e = from, most = 0; e != until; e += step)
            if (!inside(e) && level_[e] > most) {
                ends[e] = true;
                most = level_[e];
            }
    };
    if (events) climb(1, events, 1);
    if (events) climb(events - 1, 0, -1);

    EventSummary out;
    std::vector<int64_t> borders{0};
    for (int64_t e = 0, rank = 0; e < events; ++e) {
        const int64_t source = sorted_[e].source, time = sorted_[e].time;
        rank = e > 0 && sorted_[e - 1].time == time ? rank + 1 : 0;
        if (source < 0) rank = source % 2 ? node(source).first_rank : node(source).last_rank;
        if (ends[e]) out.nodes.push_back({time, rank, time, rank, 0});
        out.nodes.back().last_time = time;
        out.nodes.back().last_rank = rank;
        if (!ends[e + 1]) continue;
        out.nodes.back().events = count(borders.back(), e + 1);
        borders.push_back(e + 1);
    }
    for (const auto& [reduction, parameter] : reductions) {
        out.states.push_back({reduction, parameter, {}, {0}});
        const Kind kind = kind_of(reduction);
        const auto carried = carried_states(carried_, kind, parameter, table_.width);
        with_rows(table_, [&]<class T>(const T* table) {
            const Values<T> values{sorted_.data(), weight_.empty() ? nullptr : weight_.data(),
                                   table, table_.width};
            summarize(values, kind, parameter, borders, level_.data(), carried, out.states.back());
        });
    }
    return out;
}

void EventLog::visible(const EventQueries& queries, const EventView& view, const int64_t* offsets,
                       int64_t* rows, double* weights, int threads) const {
    each_item(
        queries, 1, threads,
        [&](int64_t slot, const int64_t* order, int64_t count, EventRanges& ranges, NodeStore&) {
            while (count > 0) {
                const int64_t taken = ranges.fill(*this, slot, queries, order, count, &view, 1);
                for (int64_t q = 0; q < taken; ++q) {
                    int64_t at = offsets[order[q]];
                    ranges.each_stretch(ranges.ranges[q], [&](int64_t a, int64_t b, int64_t) {
                        for (int64_t e = a; e < b; ++e, ++at) {
                            rows[at] = sorted_[e].row;
                            if (weights) weights[at] = weight_.empty() ? 1.0 : weight_[e];
                        }
                    });
                }
                order += taken;
                count -= taken;
            }
        });
}

}  // namespace poolkit
