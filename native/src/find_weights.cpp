#include "find_weights.h"

#include <stdexcept>

namespace lowbit {
namespace {

std::string shape_text(int64_t rows, int64_t cols) {
    std::string text = "[";
    text += std::to_string(rows);
    if (cols >= 0) text += ", " + std::to_string(cols);
    return text + "]";
}

}  // namespace

void Finder::fail(const std::string& what) const { throw std::invalid_argument(owner_ + ": " + what); }

Finder::Finder(std::string owner, const Weights& weights)
    : owner_(std::move(owner)),
      weights_(weights) {
    for (const std::string& role : weights.outliers)  // the head may be the embedding
        if (role != "head" && !weights.packed.count(role + ".weight")) fail("no matrix is called " + role);
}

void Finder::give_role(Matrix& m, const std::string& role) const {
    m.role = role;
    m.outliers = weights_.outliers.count(role) > 0;
}

Matrix Finder::matrix(const std::string& name, int64_t rows, int64_t cols, bool optional) const {
    Matrix m;
    const auto found = weights_.packed.find(name + ".weight");
    if (found == weights_.packed.end()) {
        if (!optional) fail("the matrix " + name + ".weight is missing");
        return m;
    }
    const Layout& l = found->second.layout;
    if ((rows >= 0 && l.rows != rows) || (cols >= 0 && l.k != cols))
        fail(name + ".weight has shape " + shape_text(l.rows, l.k) + ", the spec asks for " + shape_text(rows, cols));
    m.weight = &found->second;
    give_role(m, name);
    m.bias = vector(name + ".bias", {l.rows}, true);
    return m;
}

const float* Finder::vector(const std::string& name, std::initializer_list<int64_t> sizes, bool optional) const {
    const auto found = weights_.vectors.find(name);
    if (found == weights_.vectors.end()) {
        if (!optional) fail("the vector " + name + " is missing");
        return nullptr;
    }
    const int64_t size = static_cast<int64_t>(found->second.size());
    for (const int64_t wanted : sizes)
        if (size == wanted) return found->second.data();
    fail(name + " has shape " + shape_text(size, -1) + ", the spec asks for " + shape_text(*sizes.begin(), -1));
}

Norm Finder::norm(const std::string& name, int64_t size) const {
    return {vector(name + ".weight", {size}), vector(name + ".bias", {size}, true)};
}

}  // namespace lowbit
