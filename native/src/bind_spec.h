// How specs and weights cross from Python: shared by the bindings of the decoder and the encoder. A spec crosses as its
// dictionary, field by field; enumerators by name.
#pragma once
#include <stdexcept>

#include "bind.h"
#include "lowbit/cpu.h"
#include "lowbit/kernels.h"
#include "lowbit/spec.h"
#include "lowbit/weights.h"

namespace lowbit {

// Names of enumerators by value; the same words in the same order as in models/_spec.py.
template <class E>
constexpr const char* const* kNames = nullptr;
template <class E>
constexpr int kNameCount = 0;
#define ENUM_NAMES(E, ...)                                \
    constexpr const char* k##E##Names[] = {__VA_ARGS__};  \
    template <>                                           \
    constexpr const char* const* kNames<E> = k##E##Names; \
    template <>                                           \
    constexpr int kNameCount<E> = sizeof(k##E##Names) / sizeof(k##E##Names[0]);
ENUM_NAMES(NormKind, "rms", "layer")
ENUM_NAMES(NormPlace, "pre", "post", "sandwich")
ENUM_NAMES(Residual, "sequential", "parallel_shared", "parallel_separate")
ENUM_NAMES(Activation, "silu", "gelu", "gelu_tanh", "relu", "quick_gelu")
ENUM_NAMES(RopeKind, "half", "interleaved")
ENUM_NAMES(Pooling, "cls", "mean", "max", "mean_sqrt_len", "last", "weighted_mean")
ENUM_NAMES(HeadActivation, "tanh", "relu", "gelu")
#undef ENUM_NAMES

#define ROPE_FIELDS(X) X(kind) X(dim) X(inv_freq) X(inv_freq_long) X(long_from) X(scale) X(scale_long)

template <class T>
void read(nb::handle value, T& to) {
    if constexpr (std::is_enum_v<T>) {
        const std::string name = nb::cast<std::string>(value);
        for (int i = 0; i < kNameCount<T>; i++)
            if (name == kNames<T>[i]) {
                to = static_cast<T>(i);
                return;
            }
        throw std::invalid_argument("'" + name + "' is none of its values");
    } else {
        to = nb::cast<T>(value);
    }
}

template <class Set>
void read_fields(nb::dict data, const char* what, const Set& set) {
    for (auto [key, value] : data) {
        const std::string name = nb::cast<std::string>(key);
        try {
            if (!set(name, value)) throw std::invalid_argument("this build does not know it; rebuild the extension");
        } catch (const nb::cast_error&) {
            throw std::invalid_argument(std::string(what) + " field " + name + ": wrong type");
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(std::string(what) + " field " + name + ": " + error.what());
        }
    }
}

template <>
inline void read(nb::handle value, std::vector<Rope>& to) {
    to.clear();
    for (nb::handle item : value) {
        Rope rope;
        read_fields(nb::cast<nb::dict>(item), "Rope", [&](const std::string& name, nb::handle v) {
#define X(field) \
    if (name == #field) return read(v, rope.field), true;
            ROPE_FIELDS(X)
#undef X
            return false;
        });
        to.push_back(std::move(rope));
    }
}

template <size_t N>
int index_of(const char* const (&names)[N], const std::string& name, const char* what) {
    std::string known;
    for (size_t i = 0; i < N; i++) {
        if (name == names[i]) return static_cast<int>(i);
        known += std::string(i ? ", " : "") + names[i];
    }
    throw std::invalid_argument("unknown " + std::string(what) + " '" + name + "': choose one of " + known);
}

constexpr const char* kComputes[] = {"int8", "fp32", "bf16"};        // by Compute

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PackedTuple = std::tuple<int, int64_t, int64_t, int, float, Bytes>;

// Weights over arrays of Python, which whoever uses them keeps alive with `arrays`.
struct BoundWeights {
    std::vector<Bytes> arrays;
    Weights weights;
};

inline BoundWeights read_weights(nb::dict packed, nb::dict vectors, const std::vector<std::string>& outliers) {
    BoundWeights bound;
    bound.weights.outliers.insert(outliers.begin(), outliers.end());
    for (auto [key, value] : packed) {
        const std::string name = nb::cast<std::string>(key);
        try {
            auto [format, rows, k, group_size, multiplier, bytes] = nb::cast<PackedTuple>(value);
            bound.weights.packed.emplace(name, packed_view(format, rows, k, group_size, multiplier, bytes));
            bound.arrays.push_back(bytes);
        } catch (const nb::cast_error&) {
            throw std::invalid_argument(name + ": expected (format id, rows, k, group size, multiplier, uint8 array)");
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(name + ": " + error.what());
        }
    }
    for (auto [key, value] : vectors) {
        const std::string name = nb::cast<std::string>(key);
        try {
            const Vector v = nb::cast<Vector>(value);
            bound.weights.vectors.emplace(name, std::vector<float>(v.data(), v.data() + v.shape(0)));
        } catch (const nb::cast_error&) {
            throw std::invalid_argument(name + ": expected a contiguous float32 vector");
        }
    }
    return bound;
}

// The kernels of the tier of that name, or, for tests, of "amx_model"; throws std::invalid_argument when it is unknown or does not
// run here.
inline const KernelTable& read_kernels(const std::string& tier) {
    if (tier == "amx_model") return kernels_of(kAmxModel);
    const int tier_index = index_of(kTierNames, tier, "tier");
    if (!tier_available(static_cast<Tier>(tier_index)))
        throw std::invalid_argument("tier '" + tier + "' does not run on this CPU; the highest that does is '" +
                                    kTierNames[static_cast<int>(best_tier())] + "'");
    return kernels_of(tier_index);
}

}  // namespace lowbit
