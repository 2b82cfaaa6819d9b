// Vector primitives of the AVX-512 tier for shared/linear-inl.h, included inside its anonymous namespaces: a quad is one register
// of 16 rows x 4 k.

using Quad = __m512i;
using Ints = __m512i;
using Floats = __m512;
constexpr int kLanes = 16;
constexpr int64_t kPrefetchBytes = 2048;  // one thread, int4 and int8, 1 and 8 rows: 5 to 10 % more than with 1024

inline Quad load_quad(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_quad(uint8_t* p, Quad v) { _mm512_storeu_si512(p, v); }
inline Quad low_nibble(Quad v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Quad high_nibble(Quad v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
template <int i>
inline Quad crumb(Quad v) { return _mm512_and_si512(_mm512_srli_epi16(v, 2 * i), _mm512_set1_epi8(3)); }
inline Quad join_nibble(Quad low, Quad high) { return _mm512_or_si512(low, _mm512_slli_epi16(high, 4)); }

// codes + value where the 64-bit mask has a one.
template <int value>
inline Quad add_bit(Quad codes, const uint8_t* mask_bytes, int) {
    uint64_t mask;
    __builtin_memcpy(&mask, mask_bytes, 8);
    return _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(value));
}

// The int8 codebook (plus `offset`) at codes below 64.
template <FormatId id, int offset>
inline Quad look_up(Quad codes) {
    static constexpr auto table = byte_table<id, 64>(offset);
    return _mm512_permutexvar_epi8(codes, _mm512_load_si512(table.at));
}

inline Quad broadcast_four(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

// Two activations of 16 bits in every lane.
inline Quad broadcast_pair(const uint16_t* x) { return broadcast_four(reinterpret_cast<const int8_t*>(x)); }

inline Ints broadcast_int(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Floats load_halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats multiply(Floats a, const float* b) { return _mm512_mul_ps(a, _mm512_set1_ps(*b)); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
// Not _mm_prefetch: gcc 12 takes a lambda that does nothing else for one without effects, and drops its calls.
inline void prefetch(const uint8_t* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

[[maybe_unused]] inline float sum_of(const float* x, int count) {
    Floats s = zero();
    for (int i = 0; i < count; i += 16) s = add(s, _mm512_loadu_ps(x + i));
    return _mm512_reduce_add_ps(s);
}
