// Attention with queries in lanes (kernels.h, QueryLaneKernels) for the vector tiers, included behind vector-inl.h. Besides its
// primitives the including file provides transpose(Floats (&rows)[kLanes]) and kTogether, the keys (or dimensions) whose sums for all
// queries fit in the registers.

constexpr int kQueryVectors = kQueryLanes / kLanes;

void queries_to_lanes(const float* x, int64_t stride, int64_t count, int64_t dim, const float* bias, float scale, float* lanes) {
    const Floats factor = broadcast(scale), nothing = broadcast(0.0f);
    for (int64_t d = 0; d < dim; d += kLanes) {
        const int width = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
        const Floats added = bias ? load_lanes(bias + d, width) : nothing;
        for (int64_t r = 0; r < kQueryLanes; r += kLanes) {
            Floats rows[kLanes];
            UNROLL for (int i = 0; i < kLanes; i++)
                rows[i] = r + i < count ? mul(add(load_lanes(x + (r + i) * stride + d, width), added), factor) : nothing;
            transpose(rows);
            UNROLL for (int i = 0; i < kLanes; i++)
                if (i < width) store(lanes + (d + i) * kQueryLanes + r, rows[i]);
        }
    }
}

void lanes_to_rows(const float* lanes, const float* sums, int64_t count, int64_t dim, const float* bias, float* y, int64_t stride) {
    const Floats nothing = broadcast(0.0f);
    for (int64_t r = 0; r < count; r += kLanes) {
        const Floats inverse = div(broadcast(1.0f), load(sums + r));
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int width = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
            Floats columns[kLanes];
            UNROLL for (int i = 0; i < kLanes; i++)
                columns[i] = i < width ? mul(load(lanes + (d + i) * kQueryLanes + r), inverse) : nothing;
            transpose(columns);
            const Floats added = bias ? load_lanes(bias + d, width) : nothing;
            UNROLL for (int i = 0; i < kLanes; i++)
                if (r + i < count) store_lanes(y + (r + i) * stride + d, add(columns[i], added), width);
        }
    }
}

// sums[i][v] += factors[i * factor_stride + j * factor_step] * (line j of lanes), j < lines.
template <int N>
ALWAYS_INLINE void multiply_lanes(const float* lines, int64_t count, const float* factors, int64_t factor_stride, int64_t factor_step,
                                  Floats (&sums)[N][kQueryVectors]) {
    for (int64_t j = 0; j < count; j++) {
        Floats line[kQueryVectors];
        UNROLL for (int v = 0; v < kQueryVectors; v++) line[v] = load(lines + j * kQueryLanes + v * kLanes);
        UNROLL for (int i = 0; i < N; i++) {
            const Floats factor = broadcast(factors[i * factor_stride + j * factor_step]);
            UNROLL for (int v = 0; v < kQueryVectors; v++) sums[i][v] = fma(factor, line[v], sums[i][v]);
        }
    }
}

template <int N>
void scores_of_keys(const float* q, const float* keys, int64_t stride, int64_t dim, float* scores) {
    Floats sums[N][kQueryVectors];
    UNROLL for (int i = 0; i < N; i++)
        UNROLL for (int v = 0; v < kQueryVectors; v++) sums[i][v] = broadcast(0.0f);
    multiply_lanes<N>(q, dim, keys, stride, 1, sums);
    UNROLL for (int i = 0; i < N; i++)
        UNROLL for (int v = 0; v < kQueryVectors; v++) store(scores + i * kQueryLanes + v * kLanes, sums[i][v]);
}

void lane_scores(const float* q, const float* keys, int64_t stride, int64_t count, int64_t dim, float* scores) {
    int64_t t = 0;
    for (; t + kTogether <= count; t += kTogether)
        scores_of_keys<kTogether>(q, keys + t * stride, stride, dim, scores + t * kQueryLanes);
    for (; t < count; t++) scores_of_keys<1>(q, keys + t * stride, stride, dim, scores + t * kQueryLanes);
}

void lane_softmax(float* scores, int64_t count, float* largest, float* sums, float* shrink) {
    for (int v = 0; v < kQueryLanes; v += kLanes) {
        const Floats before = load(largest + v);
        Floats top = before;
        for (int64_t t = 0; t < count; t++) top = higher(top, load(scores + t * kQueryLanes + v));
        const Floats factor = exponential(sub(before, top));
        Floats even = mul(load(sums + v), factor), odd = broadcast(0.0f);
        const auto replace = [&](int64_t t) {
            const Floats e = exponential(sub(load(scores + t * kQueryLanes + v), top));
            store(scores + t * kQueryLanes + v, e);
            return e;
        };
        int64_t t = 0;
        for (; t + 2 <= count; t += 2) {
            even = add(even, replace(t));
            odd = add(odd, replace(t + 1));
        }
        if (t < count) even = add(even, replace(t));
        store(largest + v, top);
        store(sums + v, add(even, odd));
        store(shrink + v, factor);
    }
}

template <int N>
void values_of_dims(const float* weights, const float* values, int64_t stride, int64_t count, const float* shrink, float* out) {
    Floats sums[N][kQueryVectors];
    UNROLL for (int i = 0; i < N; i++)
        UNROLL for (int v = 0; v < kQueryVectors; v++)
            sums[i][v] = mul(load(out + i * kQueryLanes + v * kLanes), load(shrink + v * kLanes));
    multiply_lanes<N>(weights, count, values, 1, stride, sums);
    UNROLL for (int i = 0; i < N; i++)
        UNROLL for (int v = 0; v < kQueryVectors; v++) store(out + i * kQueryLanes + v * kLanes, sums[i][v]);
}

void lane_values(const float* weights, const float* values, int64_t stride, int64_t count, int64_t dim, const float* shrink, float* out) {
    int64_t d = 0;
    for (; d + kTogether <= dim; d += kTogether)
        values_of_dims<kTogether>(weights, values + d, stride, count, shrink, out + d * kQueryLanes);
    for (; d < dim; d++) values_of_dims<1>(weights, values + d, stride, count, shrink, out + d * kQueryLanes);
}

constexpr QueryLaneKernels kQueryLaneKernels = {queries_to_lanes, lane_scores, lane_softmax, lane_values, lanes_to_rows};
