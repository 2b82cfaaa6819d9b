// The weights of a model by canonical name (models/_spec.py lists the names).
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "lowbit/tensor.h"

namespace lowbit {

struct Weights {
    std::unordered_map<std::string, PackedView> packed;  // matrices and tables, non-owning
    std::unordered_map<std::string, std::vector<float>> vectors;
};

}  // namespace lowbit
