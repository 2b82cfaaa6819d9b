#include "lowbit/threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "placement.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace lowbit {
namespace {

// How long a waiter spins before it sleeps. Sleeping and being woken costs about 5 us, so a team that has its CPUs to itself
// spins. Where a member has lost its CPU, spinning is in vain, and may hold the very CPU that member waits for: each wait
// that ends asleep halves the time, each that does not doubles it. With another process on one of two CPUs steps then
// run at 74 % of their speed (75 % are in proportion), with always 100 us at 53 % (docs/performance.md).
constexpr std::chrono::microseconds kLongestSpin{100}, kShortestSpin{5};
constexpr int kSpinChecks = 64;  // pauses between looks at the clock

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
#else
    word.wait(expected);
#endif
}

void futex_wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
    word.notify_all();
#endif
}

using Clock = Places::Clock;

// What one member has learnt about waiting.
using Patience = std::chrono::nanoseconds;

// Waits until word differs from `old`: spins, then sleeps. Returns for how long it slept. `sleepers` lets the waker skip the system
// call.
Clock::duration wait_changed(std::atomic<uint32_t>& word, uint32_t old, std::atomic<int>& sleepers, Patience& patience) {
    auto now = Clock::now();
    const auto deadline = now + patience;
    do {
        for (int i = 0; i < kSpinChecks; i++) {
            if (word.load(std::memory_order_acquire) != old) {
                patience = std::min<Patience>(kLongestSpin, 2 * patience);
                return {};
            }
            __builtin_ia32_pause();
        }
        now = Clock::now();
    } while (now < deadline);
    patience = std::max<Patience>(kShortestSpin, patience / 2);
    sleepers.fetch_add(1);
    while (word.load() == old) futex_wait(word, old);
    sleepers.fetch_sub(1);
    return Clock::now() - now;
}

void signal_changed(std::atomic<uint32_t>& word, std::atomic<int>& sleepers) {
    word.fetch_add(1);  // sequentially consistent: pairs with the sleeper's count-then-check
    if (sleepers.load() != 0) futex_wake_all(word);
}

}  // namespace

struct ThreadPool::State {
    explicit State(int members) : waits(static_cast<size_t>(members)), places(members) {}

    std::mutex entry;  // one run() at a time
    std::vector<std::thread> workers;
    const pid_t owner = getpid();
    bool stopping = false;

    struct alignas(64) Waits {
        Patience job = kLongestSpin, barrier = kLongestSpin;
    };
    std::vector<Waits> waits;  // each member writes its own
    Places places;

    alignas(64) std::atomic<uint32_t> epoch{0};  // a change starts the next job
    std::atomic<int> idle_sleepers{0};
    const std::function<void(Team&)>* job = nullptr;

    alignas(64) std::atomic<uint32_t> phase{0};  // a change releases a barrier
    std::atomic<int> phase_sleepers{0};
    alignas(64) std::atomic<int> arrived{0};

    int members() const { return static_cast<int>(waits.size()); }

    void arrive(int id) {
        places.arrived(id);
        Clock::duration asleep{};
        const uint32_t seen = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members()) {
            arrived.store(0, std::memory_order_relaxed);
            signal_changed(phase, phase_sleepers);
        } else {
            asleep = wait_changed(phase, seen, phase_sleepers, waits[static_cast<size_t>(id)].barrier);
        }
        places.waited(id, asleep);
    }

    void work(ThreadPool* pool, int id) {
        for (uint32_t seen = 0;; seen++) {
            const auto asleep = wait_changed(epoch, seen, idle_sleepers, waits[static_cast<size_t>(id)].job);
            if (stopping) return;
            places.waited(id, asleep);
            Team team(pool, id, members());
            (*job)(team);
            arrive(id);
        }
    }

    void start(ThreadPool* pool) {
        try {
            for (int id = 1; id < members(); id++) workers.emplace_back([this, pool, id] { work(pool, id); });
        } catch (const std::system_error& error) {
            const size_t started = workers.size() + 1;
            stop();
            throw std::runtime_error("cannot start " + std::to_string(members()) + " threads, only " + std::to_string(started) +
                                     " (" + error.what() + "); ask for fewer: Runtime(threads=...)");
        }
    }

    void stop() {
        stopping = true;
        signal_changed(epoch, idle_sleepers);
        for (std::thread& t : workers) t.join();
        workers.clear();
        stopping = false;
        epoch = 0;
    }
};

void Team::barrier() {
    if (size_ > 1) pool_->state_.load(std::memory_order_relaxed)->arrive(id_);
}

Team::Range Team::slice(int64_t n, int64_t step) const {
    const int64_t steps = (n + step - 1) / step;
    const auto cut = [&](int64_t i) { return std::min(n, steps * i / size_ * step); };
    return {cut(id_), cut(id_ + 1)};
}

ThreadPool::ThreadPool(int threads) : size_(std::max(1, threads)), state_(new State(size_)) {}

ThreadPool::~ThreadPool() {
    State* s = state_.load();
    if (s->owner != getpid()) return;  // a forked child has its parent's thread objects but not the threads: leak them
    s->stop();
    delete s;
}

// In a forked child none of the parent's workers exist, and its locks may be held by nobody: the child's first callers
// make a new state and leak the old one, whose thread objects could not be destroyed.
ThreadPool::State& ThreadPool::own_state() {
    State* s = state_.load(std::memory_order_acquire);
    if (s->owner == getpid()) return *s;
    State* fresh = new State(size_);
    if (state_.compare_exchange_strong(s, fresh)) return *fresh;
    delete fresh;  // another thread of the child came first
    return *s;
}

void ThreadPool::run(const std::function<void(Team&)>& job) {
    State& s = own_state();
    std::lock_guard<std::mutex> guard(s.entry);
    Team team(this, 0, size_);
    if (size_ == 1) {
        job(team);
        return;
    }
    if (s.workers.empty()) s.start(this);
    s.job = &job;
    s.places.arrived(0);
    signal_changed(s.epoch, s.idle_sleepers);
    job(team);
    s.arrive(0);
}

}  // namespace lowbit
