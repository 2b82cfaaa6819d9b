// fp32 compute, a way to multiply for float-inl.h: the exact float values of an atom times fp32 activations. The including file provides
// float_of<id, b>(codes), in units of kFloatFactor<id>, and wide_float<id, k>(atom, half) for bf16, fp16 and fp32.
struct Fp32 {
    using Rows = FloatRows;
    using Value = float;
    using Weights = Floats;
    using Activations = Floats;
    using Sum = Floats;
    static constexpr int kEach = 1;
    template <FormatId id>
    static constexpr float factor = kFloatFactor<id>;

    template <FormatId id, int i>
    static ALWAYS_INLINE Weights of_codes(Quad codes) { return float_of<id, i>(codes); }
    template <FormatId id, int i>
    static ALWAYS_INLINE Weights of_floats(const uint8_t* atom, int half) { return wide_float<id, i>(atom, half); }
    static ALWAYS_INLINE Weights load_weights(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
    static ALWAYS_INLINE void store_weights(uint8_t* p, Weights w) { store(reinterpret_cast<float*>(p), w); }
    static ALWAYS_INLINE Activations activations(const float* x) { return broadcast(x); }
    static ALWAYS_INLINE Floats add_product(Weights w, Activations x, Floats sum) { return fma(w, x, sum); }
    static ALWAYS_INLINE Sum no_sum() { return zero(); }
    static ALWAYS_INLINE Floats total(Sum sum) { return sum; }
    static ALWAYS_INLINE float sum_of_values(const float* x, int count) { return sum_of(x, count); }
};
