// The thread pool under load, by itself: `make check-threads`, and under ThreadSanitizer `make sanitize-threads`. Members pass
// plain memory to each other, so that a barrier that does not order it is a race to see. A watchdog ends a deadlock.
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lowbit/threads.h"

using namespace lowbit;

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // every access costs tenfold, and memory limits forbid its shadow
#else
constexpr bool kSanitized = false;
#endif
constexpr unsigned kDeadlockSeconds = 60;

const char* running = "";

void deadlock(int) {
    const char text[] = ": deadlock\n";
    (void)!write(STDERR_FILENO, running, std::strlen(running));
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(3);
}

// Passes a number from every member to every other through `phases` pairs of barriers; returns how many were not seen.
int64_t pass_on(ThreadPool& pool, int phases) {
    struct alignas(64) Slot {
        int value = 0, missed = 0;
    };
    std::vector<Slot> slots(static_cast<size_t>(pool.size()));
    pool.run([&](Team& team) {
        Slot& mine = slots[static_cast<size_t>(team.id())];
        for (int p = 1; p <= phases; p++) {
            mine.value = p;
            team.barrier();
            for (const Slot& slot : slots) mine.missed += slot.value != p;
            if (team.id() == 0 && p % 1000 == 0) alarm(kDeadlockSeconds);  // there is progress, however busy the machine
            team.barrier();
        }
    });
    int64_t missed = 0;
    for (const Slot& slot : slots) missed += slot.missed;
    return missed;
}

double cpu_seconds() {
    rusage use;
    getrusage(RUSAGE_SELF, &use);
    const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
    return seconds(use.ru_utime) + seconds(use.ru_stime);
}

const int kCpus = static_cast<int>(std::thread::hardware_concurrency());

bool a_million_barriers() {
    ThreadPool pool(2);
    return pass_on(pool, kSanitized ? 50'000 : 500'000) == 0;
}

bool more_threads_than_cpus() {
    for (const int threads : {2 * kCpus, 4 * kCpus + 1}) {
        ThreadPool pool(threads);
        if (pass_on(pool, kSanitized ? 1'000 : 50'000 / threads) != 0) return false;
    }
    return true;
}

bool short_jobs() {  // the team is entered and left, which has barriers of its own
    ThreadPool pool(3);
    int64_t sum = 0;
    for (int i = 0; i < (kSanitized ? 2'000 : 50'000); i++) {
        int64_t parts[3] = {};
        pool.run([&](Team& team) { parts[team.id()] = i + team.id(); });
        sum += parts[0] + parts[1] + parts[2] - 3 * i - 3;
        if (i % 1000 == 0) alarm(kDeadlockSeconds);
    }
    return sum == 0;
}

bool callers_queue() {
    ThreadPool pools[] = {ThreadPool(1), ThreadPool(2), ThreadPool(3)};
    std::atomic<int64_t> missed{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 9; c++)
        callers.emplace_back([&, c] {
            for (int i = 0; i < 40; i++) missed += pass_on(pools[c % 3], 5);
        });
    for (std::thread& caller : callers) caller.join();
    return missed == 0;
}

bool pools_come_and_go() {
    for (int i = 0; i < 100; i++) {
        ThreadPool used(1 + i % 4), unused(2);
        if (pass_on(used, 2) != 0) return false;
    }
    return true;
}

bool pauses_between_jobs() {  // workers found spinning, falling asleep, asleep
    ThreadPool pool(3);
    for (int i = 0; i < 400; i++) {
        std::this_thread::sleep_for(std::chrono::microseconds(i));
        if (pass_on(pool, 1) != 0) return false;
    }
    return true;
}

// Forks while another thread of the parent is in the middle of jobs; two threads of the child use the pool at once. Not for
// the sanitizer, which takes new threads of a child for the parent's that are gone.
bool forked_children_have_their_own_teams() {
    if (kSanitized) return true;
    for (const int threads : {1, 2}) {
        ThreadPool pool(threads);
        std::atomic<bool> done{false};
        std::atomic<int64_t> missed{0};
        std::thread busy([&] {
            while (!done) missed += pass_on(pool, 3);
        });
        bool good = true;
        for (int i = 0; i < 20; i++) {
            const pid_t child = fork();
            alarm(2 * kDeadlockSeconds);  // the child's own watchdog comes first
            if (child == 0) {
                alarm(kDeadlockSeconds);
                int64_t other = 0;
                std::thread second([&] { other = pass_on(pool, 3); });
                const int64_t own = pass_on(pool, 3);
                second.join();
                _exit(own == 0 && other == 0 ? 0 : 1);
            }
            int status = -1;
            waitpid(child, &status, 0);
            good = good && status == 0;
        }
        done = true;
        busy.join();
        if (!good || missed != 0) return false;
    }
    return true;
}

// Where the system refuses threads the caller is told, none are left behind, and the pool works when there is room again.
bool refused_threads() {
    if (kSanitized) return true;
    const pid_t child = fork();
    if (child == 0) {
        rlimit before;
        getrlimit(RLIMIT_AS, &before);
        ThreadPool pool(16);
        const rlimit low = {64 << 20, before.rlim_max};  // room for a few stacks of 8 MB
        setrlimit(RLIMIT_AS, &low);
        bool refused = false;
        try {
            pool.run([](Team&) {});
        } catch (const std::runtime_error& error) {
            refused = std::strstr(error.what(), "cannot start 16 threads") != nullptr;
        }
        setrlimit(RLIMIT_AS, &before);
        _exit(refused && pass_on(pool, 10) == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return status == 0;
}

// Beside a thread of low priority that holds one of two CPUs, members find themselves on the other, from where workers are moved: they
// keep their affinity masks, and the caller's thread is not touched.
bool affinity_masks_last() {
    cpu_set_t mask, last;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0 || CPU_COUNT(&mask) < 2) return true;
    CPU_ZERO(&last);
    for (int cpu = CPU_SETSIZE - 1; CPU_COUNT(&last) == 0; cpu--)
        if (CPU_ISSET(cpu, &mask)) CPU_SET(cpu, &last);
    std::atomic<bool> done{false};
    std::atomic<long> hog_id{0};
    std::thread hog([&] {
        hog_id = syscall(SYS_gettid);
        setpriority(PRIO_PROCESS, static_cast<id_t>(hog_id), 19);
        sched_setaffinity(0, sizeof last, &last);
        while (!done) continue;
    });
    ThreadPool pool(CPU_COUNT(&mask));
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    bool good = true;
    while (std::chrono::steady_clock::now() < end) good = good && pass_on(pool, 100) == 0;
    const auto masks_are_whole = [&] {
        for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
            const pid_t id = std::stoi(task.path().filename());
            cpu_set_t has;
            if (id != hog_id && sched_getaffinity(id, sizeof has, &has) == 0 && !CPU_EQUAL(&has, &mask)) return false;
        }
        return true;
    };
    bool whole = false;  // a worker may be on its way at the first look
    for (int look = 0; look < 100 && !whole; look++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        whole = masks_are_whole();
    }
    done = true;
    hog.join();
    return good && whole;
}

bool idle_pools_use_no_cpu_time() {
    ThreadPool pool(4);
    pass_on(pool, 10);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return cpu_seconds() - before < (kSanitized ? 0.03 : 0.002);  // the sanitizer has a thread of its own
}

struct Check {
    const char* name;
    bool (*holds)();
};
#define CHECK(function) {#function, function}
constexpr Check kChecks[] = {
    CHECK(a_million_barriers), CHECK(more_threads_than_cpus), CHECK(short_jobs),       CHECK(callers_queue),
    CHECK(pools_come_and_go),  CHECK(pauses_between_jobs),    CHECK(refused_threads), CHECK(forked_children_have_their_own_teams),
    CHECK(affinity_masks_last), CHECK(idle_pools_use_no_cpu_time),
};

}  // namespace

int main() {
    std::signal(SIGALRM, deadlock);
    int failed = 0;
    for (const Check& check : kChecks) {
        running = check.name;
        alarm(kDeadlockSeconds);
        const auto start = std::chrono::steady_clock::now();
        const bool good = check.holds();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        std::printf("%-38s %s  %.2f s\n", check.name, good ? "ok" : "FAILED", seconds.count());
        std::fflush(stdout);  // a forked child must not print it again
        failed += !good;
    }
    return failed != 0;
}
