// The thread pool. A pool is entered once per forward pass; phases inside are separated by spin barriers.
// Waiting members spin for at most 100 us and then sleep, so a loaded but idle model uses no CPU time.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace lowbit {

class ThreadPool;

// What a job sees of its thread team. All members of a team execute the same code; barrier() is collective.
class Team {
public:
    int id() const { return id_; }
    int size() const { return size_; }
    void barrier();  // returns when all members have arrived; throws nothing

    struct Range { int64_t begin, end; };
    static Team of_one() { return {nullptr, 0, 1}; }  // a member of a pool's team that does work of its own
    // This member's part of [0, n), cut at multiples of `step`.
    Range slice(int64_t n, int64_t step = 1) const;

private:
    friend class ThreadPool;
    Team(ThreadPool* pool, int id, int size) : pool_(pool), id_(id), size_(size) {}
    ThreadPool* pool_;
    int id_, size_;
};

class ThreadPool {
public:
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Runs job(team) on all members, the caller being member 0, and returns when all are done. Safe from any thread:
    // callers queue on a mutex. Works in a forked child (workers are started anew). A job must not throw and must not
    // call run() of the same pool again. Throws std::runtime_error when the system refuses the threads.
    void run(const std::function<void(Team&)>& job);

private:
    friend class Team;
    struct State;
    State& own_state();
    int size_;
    std::atomic<State*> state_;
};

}  // namespace lowbit
