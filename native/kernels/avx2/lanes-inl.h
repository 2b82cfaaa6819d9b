// Vector primitives of the AVX2 tier for shared/linear-inl.h, included inside the tier's anonymous namespaces: a quad is one
// register of 8 rows x 4 k, half of a panel.

using Quad = __m256i;
using Ints = __m256i;
using Floats = __m256;
constexpr int kLanes = 8;
constexpr int64_t kPrefetchBytes = 2048;
constexpr int int8_panels(int) { return 4; }  // of 1 and 2 rows; more are cut as int8_few-inl.h does

inline Quad load_quad(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_quad(uint8_t* p, Quad v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Quad low_nibble(Quad v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Quad high_nibble(Quad v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
template <int i>
inline Quad crumb(Quad v) { return _mm256_and_si256(_mm256_srli_epi16(v, 2 * i), _mm256_set1_epi8(3)); }
inline Quad join_nibble(Quad low, Quad high) { return _mm256_or_si256(low, _mm256_slli_epi16(high, 4)); }

// codes + value where this half of the 64-bit mask has a one: every byte gets the mask byte that holds its bit.
template <int value>
inline Quad add_bit(Quad codes, const uint8_t* mask_bytes, int half) {
    int32_t mask;
    __builtin_memcpy(&mask, mask_bytes + 4 * half, 4);
    const Quad spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const Quad bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const Quad mine = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(mask), spread), bit);
    return _mm256_or_si256(codes, _mm256_and_si256(_mm256_cmpeq_epi8(mine, bit), _mm256_set1_epi8(value)));
}

inline Quad broadcast_four(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

// The int8 codebook (plus `offset`) at codes below 16.
template <FormatId id, int offset>
inline Quad look_up(Quad codes) {
    static constexpr auto table = byte_table<id, 32>(offset);
    return _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(table.at)), codes);
}

// -offset * sum in every lane.
template <int offset>
inline Ints minus_offset(Ints sum) {
    if constexpr (offset == 0) return _mm256_setzero_si256();
    constexpr int log2 = __builtin_ctz(offset | 1 << 30);
    static_assert(offset == 0 || offset == 1 << log2);
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, log2));
}

inline Ints broadcast_int(const int32_t* p) { return _mm256_set1_epi32(*p); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats broadcast(const float* p) { return _mm256_set1_ps(*p); }
inline Floats load_halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats multiply(Floats a, const float* b) { return _mm256_mul_ps(a, _mm256_set1_ps(*b)); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
// Not _mm_prefetch: gcc 12 takes a lambda that does nothing else for one without effects, and drops its calls.
inline void prefetch(const uint8_t* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

inline float horizontal_sum(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

[[maybe_unused]] inline float sum_of(const float* x, int count) {
    Floats s = zero();
    for (int i = 0; i < count; i += 8) s = add(s, _mm256_loadu_ps(x + i));
    return horizontal_sum(s);
}
