// Floats of the AVX2 tier: the primitives of shared/vector-inl.h and shared/code_attention-inl.h, included inside
// its anonymous namespaces.

using Floats = __m256;
constexpr int kLanes = 8;
constexpr int kKeyVectors = 2;

inline __m256i first(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const float* p, int lanes) { return _mm256_maskload_ps(p, first(lanes)); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, Floats v, int lanes) { _mm256_maskstore_ps(p, first(lanes), v); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }

inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats negate_fma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats higher(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats lower(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats nearest(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power(Floats a, Floats n) {  // 2^128 becomes infinity
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline float sum(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float highest(Floats v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

template <DType dtype>
inline Floats load_halves(const uint16_t* p) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (dtype == DType::fp16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <DType dtype>
inline __m128i halves_of(Floats v) {
    if constexpr (dtype == DType::fp16) return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i bits = _mm256_castps_si256(v), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
template <DType dtype>
inline void to_halves(Floats v, uint16_t* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves_of<dtype>(v));
}
template <DType dtype>
inline void to_halves(Floats v, uint16_t* p, int lanes) {
    alignas(16) uint16_t halves[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(halves), halves_of<dtype>(v));
    for (int i = 0; i < lanes; i++) p[i] = halves[i];
}
