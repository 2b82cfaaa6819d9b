// Looks weights up by name and checks their shapes, once, when a decoder or encoder is made.
#pragma once
#include <initializer_list>
#include <string>

#include "lowbit/linear.h"
#include "lowbit/weights.h"

namespace lowbit {

struct Matrix {
    const PackedView* weight = nullptr;
    const float* bias = nullptr;  // [rows] or null
    std::string role;   // "layers.0.down", "head"
    bool outliers = false;  // among its inputs: bf16 where the others compute in int8

    explicit operator bool() const { return weight != nullptr; }
    Compute compute(Compute wanted) const { return outliers && wanted == Compute::int8 ? Compute::bf16 : wanted; }
    // What it reads of an input that was prepared for all its readers.
    LinearInput reads(LinearInput in) const {
        in.compute = compute(in.compute);
        return in;
    }
};

struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
};

// Every failed look-up throws std::invalid_argument with the owner's name, the tensor, its shape and the one it should
// have.
class Finder {
public:
    Finder(std::string owner, const Weights& weights);

    // `name`.weight as a matrix with its bias if there is one. rows or cols -1: any.
    Matrix matrix(const std::string& name, int64_t rows, int64_t cols, bool optional = false) const;
    // A vector of one of these sizes; null when it is optional and absent.
    const float* vector(const std::string& name, std::initializer_list<int64_t> sizes, bool optional = false) const;
    Norm norm(const std::string& name, int64_t size) const;
    void give_role(Matrix& m, const std::string& role) const;
    int64_t size(const std::string& vector) const { return static_cast<int64_t>(weights_.vectors.at(vector).size()); }
    bool has(const std::string& name) const { return weights_.vectors.count(name) || weights_.packed.count(name); }

private:
    [[noreturn]] void fail(const std::string& what) const;

    std::string owner_;
    const Weights& weights_;
};

}  // namespace lowbit
