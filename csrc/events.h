// Event logs: the events of each key in a window of time before each query, to one row a query.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace poolkit {

// A log in any order. `tie`, `known` and `weight` may be null. Rows are those of a table; null:
// event e has row e.
struct EventColumns {
    int64_t events;
    const int64_t *key, *time, *tie, *known, *row;
    const double* weight;
};

struct EventTable {
    const void* values;  // (rows, width), float32 or, if `wide`, float64
    int64_t width;
    bool wide;
};

struct EventQueries {
    int64_t queries;
    const int64_t *key, *time;
};

// Which of the events before a query are seen: those at `begin` (one for each query; null: all) or
// later and, unless `last` is 0, at most the last so many. Receives how many these are.
struct EventView {
    const int64_t* begin;
    int64_t last;
    int64_t* count;
};

// A reduction of what a view sees: sum, mean, max, min, std, decay, attend, exact sum, exact mean.
// `parameter` is the half-life of a decay or the factor of an attention's scores, whose queries are
// rows of `other`. `out` has the table's dtype.
struct EventJob {
    std::string reduction;
    int64_t view;
    double parameter;
    const double* other;
    void* out;
};

struct Event {
    int64_t time, row, source;  // source: its place in the log as given; below 0: see Carried
};

// Consecutive events of one key, no others of which share a time with them, as the nodes of the
// trie that no event in front of them or behind can change, with the states of some reductions.
struct EventSummary {
    struct Node {
        int64_t first_time, first_rank, last_time, last_rank, events;
    };
    // Of one family of reductions: a state for each node. Those of exact sums have as many rows as
    // they need, whose sum is that of the node.
    struct States {
        std::string reduction;
        double parameter;
        std::vector<double> values;
        std::vector<int64_t> begin;  // of each node's, and the end
    };

    std::vector<Node> nodes;
    std::vector<States> states;
};

// A node of a summary in a log, where two events stand for it, its first and its last.
struct CarriedNode {
    const EventSummary* summary;
    int64_t node, place;

    // Which of a log it is, from the source of one of the two: -1 - 2i of the first, -2 - 2i.
    static int64_t of(int64_t source) { return (-1 - source) / 2; }
};

// The events of some keys by (key, time, tie, value, weight, known), whatever the order of the log.
//
// The order of summation is that of a binary trie over (time, rank among the events of that time):
// two neighbours are merged at the highest bit in which they differ. So a result depends on the
// events seen alone: not on the other queries, on what was seen before, or on the threads.
class EventLog {
  public:
    // `keys` are those that will be asked for. Events of others are left out. `summaries`, which
    // must outlive the log, stand for further events of the one key that is asked for: known to
    // all, at other times than those in `columns`, and in the order of their times. No view may
    // begin or end inside of one, or list what it sees of one.
    EventLog(const EventColumns& columns, const EventTable& table, const int64_t* keys,
             int64_t key_count, const std::vector<const EventSummary*>& summaries, int threads);

    // Of all events, which must be of one key, for some reductions and their parameters.
    EventSummary summary(const std::vector<std::pair<std::string, double>>& reductions) const;
    void pool(const EventQueries& queries, const std::vector<EventView>& views,
              const std::vector<EventJob>& jobs, int threads) const;
    // What a view sees, query after query, each from offsets[q] on: rows of the table, and weights
    // unless these are null.
    void visible(const EventQueries& queries, const EventView& view, const int64_t* offsets,
                 int64_t* rows, double* weights, int threads) const;

  private:
    friend class EventRanges;
    friend class KnownTrie;
    const EventSummary::Node& node(int64_t source) const {
        const CarriedNode& carried = carried_[CarriedNode::of(source)];
        return carried.summary->nodes[carried.node];
    }
    // How many events lie in these places, and the place behind so many.
    int64_t count(int64_t begin, int64_t end) const {
        return events_before_.empty() ? end - begin : events_before_[end] - events_before_[begin];
    }
    int64_t behind(int64_t begin, int64_t events) const {
        if (events_before_.empty()) return begin + events;
        return std::upper_bound(events_before_.begin() + begin, events_before_.end(),
                                events_before_[begin] + events) -
               events_before_.begin() - 1;
    }
    int64_t slot_of(int64_t key) const;
    void span_known();
    int64_t next(int64_t from, int64_t until, int64_t time, bool hidden) const;
    template <class Body>
    void each_item(const EventQueries& queries, int64_t views, int threads, const Body& body) const;

    EventTable table_;
    std::vector<int64_t> hashed_;  // keys, open addressing
    std::vector<int32_t> slots_;   // of those; -1 where there is none
    std::vector<int64_t> begin_;   // of each slot's events
    std::vector<Event> sorted_;
    std::vector<uint8_t> level_;           // of the border in front of each event
    std::vector<int64_t> rank_;            // among the events of its time; only with `known`
    std::vector<int64_t> known_, latest_;  // latest: the largest `known` up to here
    struct Span {
        int64_t least, most;
    };
    static constexpr int64_t kSpan = 16;
    std::vector<std::vector<Span>> spans_;  // of `known`, of longer and longer runs of events
    std::vector<double> weight_;
    std::vector<CarriedNode> carried_;
    std::vector<int64_t> events_before_;  // each place, and the end; only with summaries
};

}  // namespace poolkit
