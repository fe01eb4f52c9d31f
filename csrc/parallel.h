// The one parallel loop. Threads are OpenMP's, so a process that also runs torch has one pool.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace poolkit {

// Fresh memory is zeroed by the system page by page as it is first written to, 4 KB at a time
// unless larger pages are asked for.
constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages for an output that is about to be written: all of it, so that no page is
// filled for the sake of a few bytes, and only those that lie wholly inside it, so that no memory
// of others is touched. It changes no byte, and where the system declines, nothing. NumPy does the
// same for its own arrays of 4 MB and more, torch where THP_MEM_ALLOC_ENABLE is set. Measured: the
// gradient of 103 MB, fresh, faults 25089 times in 4 KB pages, which takes 49 ms, and 50 times in
// huge ones, 10 ms.
inline void ask_for_huge_pages([[maybe_unused]] void* at, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    if (bytes < 2 * kHugePage) return;
    const uintptr_t from = reinterpret_cast<uintptr_t>(at);
    const uintptr_t begin = (from + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (from + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// 64-byte aligned scratch memory of one thread, kept between calls unless it is large.
class Scratch {
  public:
    void* get(int64_t bytes) {
        if (bytes > size_) {
            size_ = 0;  // should the allocation fail, there is nothing
            memory_.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
            if (!memory_) throw std::bad_alloc();
            size_ = bytes;
        }
        return memory_.get();
    }
    void let_go() {
        if (size_ <= kKept) return;
        size_ = 0;
        memory_.reset();
    }

  private:
    static constexpr int64_t kKept = 16 << 20;

    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> memory_;
    int64_t size_ = 0;
};

inline thread_local Scratch thread_scratch;

// Below this many bytes read and written a second thread costs more than it saves. Measured: a
// parallel region of two waiting threads starts in 1 to 3 us, in which one thread moves 64 KB.
constexpr int64_t kParallelBytes = 128 * 1024;

// The threads of a parent do not exist in a child that it forks; OpenMP would wait for them.
inline bool forked = false;
inline const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Calls body(first, last, scratch) on even shares of [0, tasks).
//
// One thread enters no parallel region: a child forked after one would hang in its next.
template <class Body>
void parallel_for(int64_t tasks, int threads, int64_t bytes, int64_t scratch, const Body& body) {
    if (tasks < threads) threads = static_cast<int>(tasks);
    if (threads <= 1 || forked || bytes < kParallelBytes) {
        body(int64_t{0}, tasks, thread_scratch.get(scratch));
        thread_scratch.let_go();
        return;
    }
    bool out_of_memory = false;
#pragma omp parallel num_threads(threads)
    {
        const int64_t n = omp_get_num_threads(), me = omp_get_thread_num();
        try {
            body(tasks * me / n, tasks * (me + 1) / n, thread_scratch.get(scratch));
            thread_scratch.let_go();
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
            out_of_memory = true;
        }
    }
    if (out_of_memory) throw std::bad_alloc();
}

}  // namespace poolkit
