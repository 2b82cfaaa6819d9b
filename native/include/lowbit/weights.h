// The weights of a model by canonical name (models/_spec.py lists the names).
#pragma once
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lowbit/tensor.h"

namespace lowbit {

struct Weights {
    std::unordered_map<std::string, PackedView> packed;  // matrices and tables, non-owning
    std::unordered_map<std::string, std::vector<float>> vectors;
    // Matrices ("layers.0.down", "head") whose inputs have outliers: they compute in bf16 where the others compute in int8.
    std::unordered_set<std::string> outliers;
};

}  // namespace lowbit
