// Measures what int8 activations do to each matrix of a pass: it is multiplied both ways, and the pass goes on with the exact
// product, so that every matrix is measured on inputs that no other has rounded.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "find_weights.h"

namespace lowbit {

class Probe {
public:
    // For passes of at most `rows` rows over `weights`. Throws std::bad_alloc.
    Probe(const Weights& weights, int64_t rows);

    // Collective, with barriers inside: linear() on exact activations, measured where the input stands as int8 too.
    void product(Team& team, const KernelTable& kernels, const Matrix& m, const float* bias, const LinearInput& in, float* y,
                 int64_t y_stride);

    // By role: the root mean square, over rows, of |y_int8 - y| / |y|, y without bias. Rows of zeros do not count.
    std::map<std::string, double> errors() const;

private:
    struct Sum {
        double squares = 0;
        int64_t rows = 0;
    };

    int64_t stride_;
    std::unique_ptr<float[]> rounded_;  // the product on int8 activations, [rows][stride_]
    std::map<std::string, Sum> sums_;
};

}  // namespace lowbit
