// The block of keys or values that comes next, fetched while one is multiplied: included inside a tier's anonymous namespace.

// Lines of the cache to fetch with each step.
struct Fetch {
    const uint8_t* at;
    int lines;

    // The share of row group `group` of `groups`, where all fetch `count` pieces of `bytes`.
    Fetch(const uint8_t* next, int64_t count, int64_t bytes, int64_t groups, int64_t group) {
        const int64_t each = (bytes / groups + 63) / 64;
        at = next + group * count * each * 64;
        lines = next && group * each * 64 < bytes ? static_cast<int>(each) : 0;
    }
    // The scales that stand behind the codes: read by all rows soon after.
    static void scales(const uint8_t* at) {
        for (int i = 0; at && i < kKvBlock / 16; i++) asm volatile("prefetcht0 %0" : : "m"(at[64 * i]));
    }
    ALWAYS_INLINE void step() {
        NO_UNROLL for (int i = 0; i < lines; i++, at += 64) asm volatile("prefetcht0 %0" : : "m"(*at));
    }
};
