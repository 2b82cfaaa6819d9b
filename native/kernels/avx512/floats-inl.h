// Floats of the AVX-512 tier: the primitives of shared/vector-inl.h and shared/code_attention-inl.h, included inside
// its anonymous namespaces.

using Floats = __m512;
constexpr int kLanes = 16;
constexpr int kKeyVectors = 4;

inline __mmask16 first(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const float* p, int lanes) { return _mm512_maskz_loadu_ps(first(lanes), p); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store(float* p, Floats v, int lanes) { _mm512_mask_storeu_ps(p, first(lanes), v); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }

inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats negate_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats higher(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats lower(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats nearest(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }
inline float highest(Floats v) { return _mm512_reduce_max_ps(v); }

template <DType dtype>
inline Floats load_halves(const uint16_t* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (dtype == DType::fp16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

template <DType dtype>
inline __m256i halves_of(Floats v) {
    if constexpr (dtype == DType::fp16) return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits = _mm512_castps_si512(v), upper = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet));
}
template <DType dtype>
inline void to_halves(Floats v, uint16_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves_of<dtype>(v));
}
template <DType dtype>
inline void to_halves(Floats v, uint16_t* p, int lanes) {
    _mm256_mask_storeu_epi16(p, first(lanes), halves_of<dtype>(v));
}
