#include "placement.h"

#if defined(__linux__)
#include <sched.h>
#include <time.h>
#endif

#include <algorithm>

namespace lowbit {

#if defined(__linux__)

namespace {

// A trial ends well after so long of wanting the CPU, in vain as soon as the thread has missed it for so long. Beside a process of
// low priority on one of two CPUs trials of 6 ms succeed; beside one of the same priority, which would halve the speed, they do not.
constexpr std::chrono::milliseconds kTrial{20}, kMissed{6};
constexpr std::chrono::milliseconds kShortestPause{200}, kLongestPause{6400};  // at most 3 % and 0.1 % of the time are lost to trials

// Has the calling thread run on one of `cpus`, and from then on wherever `mask` allows.
bool move_to(const cpu_set_t& cpus, const cpu_set_t& mask) {
    if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) return false;
    sched_setaffinity(0, sizeof mask, &mask);
    return true;
}

std::chrono::nanoseconds cpu_time() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

}  // namespace

void Places::arrived(int id) {
    members_[static_cast<size_t>(id)].cpu.store(sched_getcpu(), std::memory_order_relaxed);
}

void Places::waited(int id, Clock::duration asleep) {
    if (id == 0) return;
    Member& member = members_[static_cast<size_t>(id)];
    if (member.on_trial)
        judge(member, asleep);
    else if (asleep.count() != 0 && shares(id) && Clock::now() >= member.next)
        leave(member);
}

// With a member before it: of two that share a CPU one is to go.
bool Places::shares(int id) const {
    const int cpu = sched_getcpu();
    return cpu >= 0 && std::any_of(members_.begin(), members_.begin() + id, [&](const Member& other) {
               return other.cpu.load(std::memory_order_relaxed) == cpu;
           });
}

void Places::leave(Member& member) const {
    member.began = Clock::now();
    member.next = member.began + kShortestPause;
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return;
    cpu_set_t free = mask;
    for (const Member& other : members_)
        if (const int cpu = other.cpu.load(std::memory_order_relaxed); &other != &member && cpu >= 0) CPU_CLR(cpu, &free);
    if (CPU_COUNT(&free) == 0) return;
    member.from = sched_getcpu();
    member.asleep = {};
    member.used = cpu_time();
    member.on_trial = move_to(free, mask);
}

void Places::judge(Member& member, Clock::duration asleep) {
    const auto now = Clock::now();
    member.asleep += asleep;
    const auto wanted = now - member.began - member.asleep, missed = wanted - (cpu_time() - member.used);
    if (missed > kMissed) {
        member.on_trial = false;
        member.pause = std::clamp<Clock::duration>(2 * member.pause, kShortestPause, kLongestPause);
        member.next = now + member.pause;
        cpu_set_t mask, back;
        CPU_ZERO(&back);
        CPU_SET(member.from, &back);
        if (sched_getaffinity(0, sizeof mask, &mask) == 0) move_to(back, mask);
    } else if (wanted > kTrial) {
        member.on_trial = false;
        member.pause = {};
        member.next = now;
    }
}

#else

void Places::arrived(int) {}
void Places::waited(int, Clock::duration) {}

#endif

}  // namespace lowbit
