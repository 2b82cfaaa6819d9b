// The tile instructions, and nothing else, for shared/tiles-inl.h. amx_model/tile_ops-inl.h is the same in plain C++.
// The wrappers are asm with a memory clobber: gcc's own _tile_loadconfig and _tile_loadd do not say that they read memory,
// and the compiler drops what was stored there. Tile numbers are part of the instruction, so they are template arguments.

inline void tile_configure(const TileConfig* config) { __asm__ volatile("ldtilecfg %0" ::"m"(*config) : "memory"); }
inline void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }

template <int t>
inline void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(t));
}
// Rows are `stride` bytes apart.
template <int t>
inline void tile_load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(t), "r"(from), "r"(stride) : "memory");
}
template <int t>
inline void tile_store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(t), "r"(to), "r"(stride) : "memory");
}
// c += a b, bf16 x bf16 in fp32.
template <int c, int a, int b>
inline void tile_multiply_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
// c += a b, int8 x int8 in int32.
template <int c, int a, int b>
inline void tile_multiply() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
// The same with a, b or both as unsigned bytes (u) instead of signed ones (s).
template <int c, int a, int b>
inline void tile_multiply_su() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
inline void tile_multiply_us() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
inline void tile_multiply_uu() {
    __asm__ volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
