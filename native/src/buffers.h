// Where the activations of a pass live and how a team shares the work on them; decoder and encoder use the same.
#pragma once
#include <algorithm>

#include "find_weights.h"
#include "lowbit/linear.h"
#include "lowbit/memory.h"

namespace lowbit {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Floats per row: whole cache lines, never a multiple of 4 KiB (rows would compete for the same cache sets).
inline int64_t row_stride(int64_t columns) {
    const int64_t floats = round_up(columns, kLine / 4);
    return floats % 1024 ? floats : floats + kLine / 4;
}

// Carves aligned pieces off a reservation; without one it only counts.
class Carver {
public:
    explicit Carver(uint8_t* base)
        : base_(base) {}

    float* take(int64_t bytes) {
        const size_t at = used_;
        used_ += static_cast<size_t>(round_up(bytes, 4096));
        return base_ ? reinterpret_cast<float*>(base_ + at) : nullptr;
    }
    size_t used() const { return used_; }

private:
    uint8_t* base_;
    size_t used_ = 0;
};

// Activations [rows][stride] that a linear product reads, with room for their quantised form. Columns past k stay zero.
struct InputBuffer {
    float* data = nullptr;
    int64_t stride = 0, k = 0, k_padded = 0;
    Rounding rounding{};  // for the readers of this buffer
    Compute compute = Compute::int8;  // of the model: of readers without outliers
    void* rounded = nullptr;
    bool read_as_floats = false;  // by a reader that takes them exact

    // Makes room for a product with `m`, whose k columns it reads, in a model of that compute type.
    void read_by(const Matrix& m, int64_t columns, Compute of_model) {
        compute = of_model;
        k = columns;
        const Layout& l = m.weight->layout;
        if (l.k_padded > k_padded) k_padded = l.k_padded;
        const Rounding mine = Rounding::of(*m.weight->format, m.compute(compute));
        rounding = rounding | mine;
        if (!mine) read_as_floats = true;
        stride = row_stride(k_padded > round_up(k, kPanelRows) ? k_padded : round_up(k, kPanelRows));
    }
    float* row(int64_t r) const { return data + r * stride; }
    // Makes `values`, whose place is columns [begin, end) of a row, what products read.
    void put(const KernelTable& kernels, const LinearInput& in, int64_t r, int64_t begin, int64_t end, const float* values) const {
        if (read_as_floats) std::copy(values, values + (end - begin), row(r) + begin);
        quantize_columns(kernels, in, r, begin, end, values);
    }
    // Bytes of `rounded` for so many rows.
    int64_t rounded_bytes(int64_t rows) const { return static_cast<int64_t>(linear_input_bytes(rows, k_padded, rounding)); }
    LinearInput input(int64_t rows) const {
        return linear_input(data, stride, rows, k, k_padded, compute, rounding, rounded);
    }
};

struct OutputBuffer {
    float* data = nullptr;
    int64_t stride = 0;

    void written_by(int64_t columns) {
        stride = row_stride(round_up(columns, kPanelRows));
    }  // whole panels are written
    float* row(int64_t r) const { return data + r * stride; }
};

// Rows [first, first + count) of a prepared input.
inline LinearInput rows_of(LinearInput in, int64_t first, int64_t count) {
    in.rows.data += first * in.rows.stride;
    in.rows.m = count;
    in.quantized.m = count;
    in.bf16.first_row += first;
    if (in.quantized.codes) {
        in.quantized.codes += first * in.quantized.k_padded;
        in.quantized.scales += first * (in.quantized.k_padded / kActivationK);
        in.quantized.sums += first * (in.quantized.k_padded / kAtomK);
    }
    return in;
}

// Calls fn(row, begin, end) for this member's share of [rows] x [columns], cut at multiples of `step` columns.
template <class F>
void for_share(const Team& team, int64_t rows, int64_t columns, int64_t step, F&& fn) {
    const int64_t pieces = (columns + step - 1) / step;
    const Team::Range mine = team.slice(rows * pieces);
    for (int64_t i = mine.begin; i < mine.end;) {
        const int64_t row = i / pieces, first = i % pieces;
        const int64_t last = first + (mine.end - i) < pieces ? first + (mine.end - i) : pieces;
        fn(row, first * step, last * step < columns ? last * step : columns);
        i += last - first;
    }
}

}  // namespace lowbit
