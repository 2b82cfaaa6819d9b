// Element-wise and attention loops of the vector tiers, included inside a tier's anonymous namespace after its
// primitives:
//   Floats and kLanes; load, store (both also with a count of lanes, the others read as 0 and not written), broadcast;
//   add, sub, mul, div, fma(a, b, c) = a b + c, negate_fma(a, b, c) = c - a b; higher(a, b), lower(a, b), which return
//   b if either is NaN; nearest(a) rounded to an integer, times_power(a, n) = a 2^n for integers -126 <= n <= 128; sum,
//   highest over lanes; load_halves<dtype>(p); to_halves<dtype>(a, p), also with a
//   count of lanes; kKeyVectors, the vectors of keys or values that fit the registers beside kQueryRows rows of sums.

#include "shared/exponential-inl.h"

inline Floats negated(Floats x) { return sub(broadcast(0.0f), x); }

// x / (1 + e^-t)
inline Floats sigmoid_times(Floats x, Floats t) { return div(x, add(broadcast(1.0f), exponential(negated(t)))); }

// x P(x^2) / Q(x^2) on [-4, 4], where erf is 1 to within fp32: the rational minimax approximation that Eigen and XLA use.
inline Floats error_function(Floats x) {
    x = lower(broadcast(4.0f), higher(broadcast(-4.0f), x));
    const Floats square = mul(x, x);
    Floats p = broadcast(-2.72614225801306e-10f);
    p = fma(p, square, broadcast(2.77068142495902e-08f));
    p = fma(p, square, broadcast(-2.10102402082508e-06f));
    p = fma(p, square, broadcast(-5.69250639462346e-05f));
    p = fma(p, square, broadcast(-7.34990630326855e-04f));
    p = fma(p, square, broadcast(-2.95459980854025e-03f));
    p = fma(p, square, broadcast(-1.60960333262415e-02f));
    Floats q = broadcast(-1.45660718464996e-05f);
    q = fma(q, square, broadcast(-2.13374055278905e-04f));
    q = fma(q, square, broadcast(-1.68282697438203e-03f));
    q = fma(q, square, broadcast(-7.37332916720468e-03f));
    q = fma(q, square, broadcast(-1.42647390514189e-02f));
    return div(mul(x, p), q);
}

template <Activation f>
inline Floats apply(Floats x) {
    if constexpr (f == Activation::silu) return sigmoid_times(x, x);
    if constexpr (f == Activation::quick_gelu) return sigmoid_times(x, mul(x, broadcast(1.702f)));
    if constexpr (f == Activation::relu) return higher(broadcast(0.0f), x);
    if constexpr (f == Activation::gelu)
        return mul(mul(x, broadcast(0.5f)), add(broadcast(1.0f), error_function(mul(x, broadcast(0.70710678f)))));
    if constexpr (f == Activation::gelu_tanh) {  // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
        const Floats cube = mul(mul(x, x), mul(x, broadcast(0.044715f)));
        return sigmoid_times(x, mul(add(x, cube), broadcast(2 * 0.79788456f)));
    }
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// Calls f(i, lanes) for every vector of a row of n, the last one with fewer lanes.
template <class F>
ALWAYS_INLINE void each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
    if (i < n) f(i, static_cast<int>(n - i));
}
ALWAYS_INLINE Floats load_lanes(const float* p, int lanes) { return lanes == kLanes ? load(p) : load(p, lanes); }
ALWAYS_INLINE void store_lanes(float* p, Floats v, int lanes) { lanes == kLanes ? store(p, v) : store(p, v, lanes); }

// Sum of f(vector) over a row; lanes past the end are zero in, and f keeps them zero.
template <class F>
ALWAYS_INLINE float row_sum(const float* x, int64_t n, F f) {
    Floats even = broadcast(0.0f), odd = even;
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even = add(even, f(load(x + i)));
        odd = add(odd, f(load(x + i + kLanes)));
    }
    if (i + kLanes <= n) even = add(even, f(load(x + i))), i += kLanes;
    float total = sum(add(even, odd));
    if (i < n) {
        float rest[kLanes];
        store(rest, f(load(x + i, static_cast<int>(n - i))));
        for (int lane = 0; lane < n - i; lane++) total += rest[lane];
    }
    return total;
}

void rms_norm(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y) {
    const float squares = row_sum(x, n, [](Floats v) { return mul(v, v); });
    const Floats scale = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps)),
                 offset = broadcast(weight_offset);
    each_vector(n, [&](int64_t i, int lanes) {
        store_lanes(y + i, mul(mul(load_lanes(x + i, lanes), scale), add(load_lanes(weight + i, lanes), offset)),
                    lanes);
    });
}

void layer_norm(const float* x, const float* weight, const float* bias, float weight_offset, float eps, int64_t n,
                float* y) {
    const Floats mean = broadcast(row_sum(x, n, [](Floats v) { return v; }) / static_cast<float>(n));
    const float squares = row_sum(x, n, [&](Floats v) { return mul(sub(v, mean), sub(v, mean)); });
    const Floats scale = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps)),
                 offset = broadcast(weight_offset);
    each_vector(n, [&](int64_t i, int lanes) {
        Floats v = mul(sub(load_lanes(x + i, lanes), mean), scale);
        if (weight) v = mul(v, add(load_lanes(weight + i, lanes), offset));
        if (bias) v = add(v, load_lanes(bias + i, lanes));
        store_lanes(y + i, v, lanes);
    });
}

void add_row(float* y, const float* x, float scale, int64_t n) {
    const Floats factor = broadcast(scale);
    each_vector(n, [&](int64_t i, int lanes) {
        store_lanes(y + i, fma(load_lanes(x + i, lanes), factor, load_lanes(y + i, lanes)), lanes);
    });
}

float max_of_row(const float* x, int64_t n) {
    float largest = x[0];
    int64_t i = 0;
    if (n >= kLanes) {
        Floats v = load(x);
        for (i = kLanes; i + kLanes <= n; i += kLanes) v = higher(v, load(x + i));
        largest = highest(v);
    }
    for (; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

float exp_sum(float* x, float shift, int64_t n) {
    const Floats by = broadcast(shift);
    float total = 0;
    Floats sums = broadcast(0.0f);
    each_vector(n, [&](int64_t i, int lanes) {
        const Floats e = exponential(sub(load_lanes(x + i, lanes), by));
        store_lanes(x + i, e, lanes);
        if (lanes == kLanes)
            sums = add(sums, e);
        else
            for (int lane = 0; lane < lanes; lane++) total += x[i + lane];
    });
    return total + sum(sums);
}

template <DType dtype>
void to_halves_row(const float* x, uint16_t* y, int64_t n) {
    each_vector(n, [&](int64_t i, int lanes) {
        if (lanes == kLanes)
            to_halves<dtype>(load(x + i), y + i);
        else
            to_halves<dtype>(load(x + i, lanes), y + i, lanes);
    });
}

template <Activation f>
void activate_row(const float* x, int64_t n, float* y) {
    each_vector(n, [&](int64_t i, int lanes) { store_lanes(y + i, apply<f>(load_lanes(x + i, lanes)), lanes); });
}

template <Activation f>
void activate_gated_row(const float* gate_up, int64_t n, float* y) {
    each_vector(n, [&](int64_t i, int lanes) {
        const float* gate = gate_up + i / kPanelRows * (2 * kPanelRows) + i % kPanelRows;  // whole panels can be read
        store_lanes(y + i, mul(apply<f>(load(gate)), load(gate + kPanelRows)), lanes);
    });
}

using Activate = void (*)(const float*, int64_t, float*);
#define FOR_ACTIVATIONS(kernel)                                                                                   \
    {kernel<Activation::silu>, kernel<Activation::gelu>, kernel<Activation::gelu_tanh>, kernel<Activation::relu>, \
     kernel<Activation::quick_gelu>}
constexpr Activate kActivate[] = FOR_ACTIVATIONS(activate_row);
constexpr Activate kActivateGated[] = FOR_ACTIVATIONS(activate_gated_row);
#undef FOR_ACTIVATIONS

void activate(Activation f, const float* x, int64_t n, float* y) { kActivate[static_cast<int>(f)](x, n, y); }
void activate_gated(Activation f, const float* gate_up, int64_t n, float* y) {
    kActivateGated[static_cast<int>(f)](gate_up, n, y);
}

// ---- attention ------------------------------------------------------------------------------------------------------

template <DType dtype>
ALWAYS_INLINE Floats load_element(const void* data, int64_t i) {
    if constexpr (dtype == DType::fp32)
        return load(static_cast<const float*>(data) + i);
    else
        return load_halves<dtype>(static_cast<const uint16_t*>(data) + i);
}

// sums[r][v] += factors[r * row_stride + i * step] * (vector v of line i), i < lines; lines are line_stride elements
// apart.
template <DType dtype, int R, int N>
ALWAYS_INLINE void outer_products(const float* factors, int64_t row_stride, const void* data, int64_t line_stride,
                                  int64_t lines, int64_t column, Floats (&sums)[R][N]) {
    for (int64_t i = 0; i < lines; i++) {
        Floats line[N];
        for (int v = 0; v < N; v++) line[v] = load_element<dtype>(data, i * line_stride + column + v * kLanes);
        for (int r = 0; r < R; r++) {
            const Floats factor = broadcast(factors[r * row_stride + i]);
            for (int v = 0; v < N; v++) sums[r][v] = fma(factor, line[v], sums[r][v]);
        }
    }
}

template <DType dtype, int R>
void scores_of_rows(const float* q, const void* keys, int64_t count, int64_t dim, float* scores) {
    for (int64_t t = 0; t < count; t += kKeyVectors * kLanes) {
        Floats sums[R][kKeyVectors];
        for (auto& row : sums)
            for (Floats& s : row) s = broadcast(0.0f);
        outer_products<dtype>(q, dim, keys, kKvBlock, dim, t, sums);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < kKeyVectors; v++) store(scores + r * kKvBlock + t + v * kLanes, sums[r][v]);
    }
}

template <DType dtype, int R, int N>
ALWAYS_INLINE void values_of_columns(const float* weights, const void* values, int64_t count, int64_t dim, int64_t d,
                                     float* out) {
    Floats sums[R][N];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) sums[r][v] = load(out + r * dim + d + v * kLanes);
    outer_products<dtype>(weights, kKvBlock, values, dim, count, d, sums);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) store(out + r * dim + d + v * kLanes, sums[r][v]);
}

template <DType dtype, int R>
void values_of_rows(const float* weights, const void* values, int64_t count, int64_t dim, float* out) {
    int64_t d = 0;
    for (; d + kKeyVectors * kLanes <= dim; d += kKeyVectors * kLanes)
        values_of_columns<dtype, R, kKeyVectors>(weights, values, count, dim, d, out);
    // Heads of 32 with 16 lanes: two vectors at a time, because one has too few sums to hide the latency of the multiply-add.
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) values_of_columns<dtype, R, 2>(weights, values, count, dim, d, out);
    for (; d < dim; d += kLanes) values_of_columns<dtype, R, 1>(weights, values, count, dim, d, out);
}

using Attend = void (*)(const float*, const void*, int64_t, int64_t, float*);
#define FOR_ROWS(kernel, dtype) {kernel<dtype, 1>, kernel<dtype, 2>, kernel<dtype, 3>, kernel<dtype, 4>}
#define FOR_DTYPES(kernel)                                                                        \
    {FOR_ROWS(kernel, DType::fp32), FOR_ROWS(kernel, DType::fp16), FOR_ROWS(kernel, DType::bf16)}
constexpr int kQueryRows = 4;
constexpr Attend kScores[3][kQueryRows] = FOR_DTYPES(scores_of_rows);
constexpr Attend kValues[3][kQueryRows] = FOR_DTYPES(values_of_rows);
#undef FOR_DTYPES
#undef FOR_ROWS

void attention_scores(const float* q, int64_t rows, const void* keys, DType dtype, int64_t count, int64_t dim,
                      float* scores) {
    for (int64_t r = 0; r < rows; r += kQueryRows) {
        const int64_t left = rows - r < kQueryRows ? rows - r : kQueryRows;
        kScores[static_cast<int>(dtype)][left - 1](q + r * dim, keys, count, dim, scores + r * kKvBlock);
    }
}

void attention_values(const float* weights, int64_t rows, const void* values, DType dtype, int64_t count, int64_t dim,
                      float* out) {
    for (int64_t r = 0; r < rows; r += kQueryRows) {
        const int64_t left = rows - r < kQueryRows ? rows - r : kQueryRows;
        kValues[static_cast<int>(dtype)][left - 1](weights + r * kKvBlock, values, count, dim, out + r * dim);
    }
}

VectorKernels table() {
    VectorKernels k{};
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.add = add_row;
    k.max = max_of_row;
    k.exp_sum = exp_sum;
    k.to_fp16 = to_halves_row<DType::fp16>;
    k.to_bf16 = to_halves_row<DType::bf16>;
    k.activate = activate;
    k.activate_gated = activate_gated;
    k.attention_scores = attention_scores;
    k.attention_values = attention_values;
    return k;
}
