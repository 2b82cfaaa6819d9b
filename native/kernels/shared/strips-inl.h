// How panels are cut into strips whose sums stay in registers; included inside a tier's anonymous namespace behind tables.h.

// Calls f(first panel, Index<panels>) for strips of `most` (2 or 3) panels, the last ones of fewer.
template <int most, class F>
ALWAYS_INLINE void for_strips(int64_t first_panel, int64_t panels, F f) {
    static_assert(most == 2 || most == 3);
    const int64_t end = first_panel + panels;
    for (int64_t p = first_panel; p < end;) {
        const int64_t left = end - p;
        if (left == 1) {
            f(p, Index<1>{});
            p += 1;
        } else if (most == 2 || left == 2 || left == 4) {  // 4 = 2 + 2: strips of one panel have few sums under way
            f(p, Index<2>{});
            p += 2;
        } else {
            f(p, Index<most>{});
            p += most;
        }
    }
}
