#include "probe.h"

#include <algorithm>
#include <cmath>

#include "buffers.h"

namespace lowbit {

Probe::Probe(const Weights& weights, int64_t rows) {
    int64_t columns = 0;
    for (const auto& [name, w] : weights.packed) columns = std::max(columns, w.layout.rows);
    stride_ = row_stride(round_up(columns, kPanelRows));
    rounded_.reset(new float[static_cast<size_t>(rows * stride_)]);
}

void Probe::product(Team& team, const KernelTable& kernels, const Matrix& m, const float* bias, const LinearInput& in, float* y,
                    int64_t y_stride) {
    const LinearInput rounded = m.reads(in);
    LinearInput exact = in;
    exact.compute = Compute::fp32;
    linear(team, kernels, *m.weight, bias, exact, y, y_stride);
    if (rounded.compute != Compute::int8 || !has_int8_compute(*m.weight->format)) return;
    linear(team, kernels, *m.weight, bias, rounded, rounded_.get(), stride_);
    team.barrier();
    if (team.id() == 0) {  // alone, in one order: the result is the same for any number of threads
        Sum& sum = sums_[m.role];
        for (int64_t r = 0; r < in.rows.m; r++) {
            const float *a = y + r * y_stride, *b = rounded_.get() + r * stride_;
            double error = 0, size = 0;
            for (int64_t i = 0; i < m.weight->layout.rows; i++) {
                const double value = bias ? a[i] - bias[i] : a[i], difference = b[i] - a[i];
                error += difference * difference;
                size += value * value;
            }
            if (!(size > 0)) continue;
            sum.squares += std::isfinite(error / size) ? error / size : 1.0;  // beyond fp32: all is lost
            sum.rows++;
        }
    }
    team.barrier();
}

std::map<std::string, double> Probe::errors() const {
    std::map<std::string, double> errors;
    for (const auto& [role, sum] : sums_) errors[role] = sum.rows ? std::sqrt(sum.squares / sum.rows) : 0.0;
    return errors;
}

}  // namespace lowbit
