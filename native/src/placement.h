// Where the members of a thread team stand, and whether one of them would do better elsewhere. (placement.cpp)
#pragma once
#include <atomic>
#include <chrono>
#include <vector>

namespace lowbit {

// Takes workers off CPUs that they share with other members, on trial.
//
// A thread that is woken stays on a CPU that another member uses where no other CPU is idle, even if what runs there would give way.
// So a worker that finds itself so asks to be moved, once. If it then misses the CPU for long while it wants it, it goes back to
// where it was: members that take turns on one CPU are quicker than members of which each waits for the other to be let in. It
// tries again after a while that doubles with every trial in vain. Its affinity mask is the old one as soon as it has moved, so
// the scheduler stays free to do better. Member 0 is a thread of the caller's, and stays where it is.
class Places {
public:
    using Clock = std::chrono::steady_clock;

    explicit Places(int members) : members_(static_cast<size_t>(members)) {}

    // The calling thread is member `id`, here and below: notes where it stands.
    void arrived(int id);
    // It has waited for others, and slept for so long.
    void waited(int id, Clock::duration asleep);

private:
    struct alignas(64) Member {
        std::atomic<int> cpu{-1};  // where it stood when it arrived last; all else is its own
        bool on_trial = false;
        int from = -1;               // where it stood before the trial
        Clock::time_point began, next{};  // of the trial; before which there is no other
        Clock::duration asleep, used;    // in the trial; CPU time before it
        Clock::duration pause{};         // after the last trial in vain
    };

    bool shares(int id) const;
    void leave(Member& member) const;
    static void judge(Member& member, Clock::duration asleep);

    std::vector<Member> members_;
};

}  // namespace lowbit
