#include "lowbit/threads.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace lowbit {
namespace {

// Spinning longer than this costs other processes more than a futex wake costs us (about 5 us measured).
constexpr auto kSpinTime = std::chrono::microseconds(100);
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

// Waits until word differs from `old`: spins, then sleeps. `sleepers` lets the waker skip the system call.
void wait_changed(std::atomic<uint32_t>& word, uint32_t old, std::atomic<int>& sleepers) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int i = 0; i < kSpinChecks; i++) {
            if (word.load(std::memory_order_acquire) != old) return;
            __builtin_ia32_pause();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    sleepers.fetch_add(1);
    while (word.load() == old) futex_wait(word, old);
    sleepers.fetch_sub(1);
}

void signal_changed(std::atomic<uint32_t>& word, std::atomic<int>& sleepers) {
    word.fetch_add(1);  // sequentially consistent: pairs with the sleeper's count-then-check
    if (sleepers.load() != 0) futex_wake_all(word);
}

int quota_cpus() {
#if defined(__linux__)
    // cgroup v2 "max 100000" or "200000 100000"; cgroup v1 keeps the two numbers in two files.
    long long quota = -1, period = 100000;
    if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        char text[32] = {};
        if (std::fscanf(f, "%31s %lld", text, &period) == 2 && std::strcmp(text, "max") != 0) quota = std::atoll(text);
        std::fclose(f);
    } else if (FILE* q = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
        if (std::fscanf(q, "%lld", &quota) != 1) quota = -1;
        std::fclose(q);
        if (FILE* p = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
            if (std::fscanf(p, "%lld", &period) != 1) period = 100000;
            std::fclose(p);
        }
    }
    if (quota > 0 && period > 0) return static_cast<int>(std::max<long long>(1, (quota + period - 1) / period));
#endif
    return 1 << 20;
}

}  // namespace

int allowed_cpus() {
    int n = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
    return std::max(1, std::min(n, quota_cpus()));
}

struct ThreadPool::State {
    std::mutex entry;  // one run() at a time
    std::vector<std::thread> workers;
    pid_t owner = 0;
    bool stopping = false;

    alignas(64) std::atomic<uint32_t> epoch{0};  // a change starts the next job
    std::atomic<int> idle_sleepers{0};
    const std::function<void(Team&)>* job = nullptr;

    alignas(64) std::atomic<uint32_t> phase{0};  // a change releases a barrier
    std::atomic<int> phase_sleepers{0};
    alignas(64) std::atomic<int> arrived{0};

    void arrive(int members) {
        const uint32_t seen = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            arrived.store(0, std::memory_order_relaxed);
            signal_changed(phase, phase_sleepers);
        } else {
            wait_changed(phase, seen, phase_sleepers);
        }
    }
};

void Team::barrier() {
    if (size_ > 1) pool_->state_->arrive(size_);
}

Team::Range Team::slice(int64_t n, int64_t step) const {
    const int64_t steps = (n + step - 1) / step;
    const auto cut = [&](int64_t i) { return std::min(n, steps * i / size_ * step); };
    return {cut(id_), cut(id_ + 1)};
}

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()), size_(std::max(1, threads)) {}

ThreadPool::~ThreadPool() {
    State& s = *state_;
    if (s.owner == 0 || s.owner == getpid()) {
        s.stopping = true;
        signal_changed(s.epoch, s.idle_sleepers);
        for (std::thread& t : s.workers) t.join();
    } else {
        state_.release();  // a forked child has its parent's thread objects but not the threads: leak them
    }
}

void ThreadPool::run(const std::function<void(Team&)>& job) {
    if (size_ == 1) {
        std::lock_guard<std::mutex> guard(state_->entry);
        Team team(this, 0, 1);
        job(team);
        return;
    }
    if (state_->owner != 0 && state_->owner != getpid()) {
        // Forked child: none of the parent's workers exist here, and its locks may be held by nobody.
        state_.release();  // leaked on purpose: destroying the std::thread objects would terminate
        state_ = std::make_unique<State>();
    }
    State& s = *state_;
    std::lock_guard<std::mutex> guard(s.entry);
    if (s.workers.empty()) {
        s.owner = getpid();
        for (int id = 1; id < size_; id++) {
            s.workers.emplace_back([this, &s, id] {
                uint32_t seen = 0;
                for (;;) {
                    wait_changed(s.epoch, seen, s.idle_sleepers);
                    if (s.stopping) return;
                    seen++;
                    Team team(this, id, size_);
                    (*s.job)(team);
                    s.arrive(size_);
                }
            });
        }
    }
    s.job = &job;
    signal_changed(s.epoch, s.idle_sleepers);
    Team team(this, 0, size_);
    job(team);
    s.arrive(size_);
}

}  // namespace lowbit
