// Where the time of a pass goes: decoder and encoder name their phases alike.
#pragma once

namespace lowbit {

// Phases of a forward pass, for profiles: each ends with a barrier of the team.
#define LOWBIT_PHASES(X) X(embed) X(norm) X(qkv) X(rotate) X(attention) X(o) X(up) X(activate) X(down) X(head)
enum class Phase : int {
#define X(name) name,
    LOWBIT_PHASES(X)
#undef X
};
inline constexpr const char* kPhaseNames[] = {
#define X(name) #name,
    LOWBIT_PHASES(X)
#undef X
};
inline constexpr int kPhases = sizeof(kPhaseNames) / sizeof(kPhaseNames[0]);
struct PhaseTimes {
    double seconds[kPhases] = {};
};

}  // namespace lowbit
