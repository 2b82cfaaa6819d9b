// Decoder and KvCache as Python sees them. A spec crosses as ModelSpec.to_dict(), field by field.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "bind.h"
#include "lowbit/decoder.h"

using namespace lowbit;

namespace {

// The fields of the two structs in spec.h; a test holds them equal to spec.h and to models/_spec.py.
// clang-format off
#define ROPE_FIELDS(X) X(kind) X(dim) X(inv_freq) X(inv_freq_long) X(long_from) X(scale) X(scale_long)
#define SPEC_FIELDS(X)                                                                                                  \
    X(family) X(vocab_size) X(hidden_size) X(layers) X(heads) X(kv_heads) X(head_dim) X(ffn_size) X(context)            \
    X(norm) X(norm_place) X(norm_eps) X(norm_weight_offset) X(final_norm) X(qk_norm) X(qk_norm_whole) X(residual)       \
    X(residual_scale) X(embedding_scale) X(learned_position_offset) X(ropes) X(layer_rope) X(alibi_slopes)              \
    X(attention_scale) X(attention_softcap) X(layer_attention_scale) X(attention_logn_from) X(layer_window) X(clip_qkv) \
    X(gated) X(activation) X(tied_head) X(logit_scale) X(logit_softcap)
// clang-format on

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
#undef ENUM_NAMES

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
void read(nb::handle value, std::vector<Rope>& to) {
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

ModelSpec read_spec(nb::dict data) {
    ModelSpec spec;
    read_fields(data, "ModelSpec", [&](const std::string& name, nb::handle v) {
#define X(field) \
    if (name == #field) return read(v, spec.field), true;
        SPEC_FIELDS(X)
#undef X
        return false;
    });
    return spec;
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

constexpr const char* kDTypes[] = {"fp32", "fp16", "bf16"};  // by DType
constexpr const char* kComputes[] = {"int8", "fp32"};        // by Compute

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PackedTuple = std::tuple<int, int64_t, int64_t, int, float, Bytes>;

// Keeps the arrays alive that the decoder views.
struct BoundDecoder {
    std::vector<Bytes> arrays;
    std::unique_ptr<Decoder> decoder;
};

void construct(BoundDecoder* self, nb::dict spec, nb::dict packed, nb::dict vectors, const std::string& compute,
               const std::string& tier) {
    const int tier_index = index_of(kTierNames, tier, "tier");
    if (!tier_available(static_cast<Tier>(tier_index)))
        throw std::invalid_argument("tier '" + tier + "' does not run on this CPU; the highest that does is '" +
                                    kTierNames[static_cast<int>(best_tier())] + "'");
    std::vector<Bytes> arrays;
    DecoderWeights weights;
    for (auto [key, value] : packed) {
        const std::string name = nb::cast<std::string>(key);
        try {
            auto [format, rows, k, group_size, multiplier, bytes] = nb::cast<PackedTuple>(value);
            weights.packed.emplace(name, packed_view(format, rows, k, group_size, multiplier, bytes));
            arrays.push_back(bytes);
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
            weights.vectors.emplace(name, std::vector<float>(v.data(), v.data() + v.shape(0)));
        } catch (const nb::cast_error&) {
            throw std::invalid_argument(name + ": expected a contiguous float32 vector");
        }
    }
    new (self) BoundDecoder{
        std::move(arrays), std::make_unique<Decoder>(read_spec(spec), std::move(weights),
                                                     static_cast<Compute>(index_of(kComputes, compute, "compute type")),
                                                     static_cast<Tier>(tier_index))};
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> forward(BoundDecoder& self, ThreadPool& pool,
                                                   const std::vector<std::tuple<nb::object, Tokens, bool>>& items) {
    std::vector<Part> parts;
    int64_t rows = 0;
    for (const auto& [cache, tokens, all_logits] : items) {
        const int64_t count = static_cast<int64_t>(tokens.shape(0));
        parts.push_back({nb::cast<KvCache*>(cache), tokens.data(), count, all_logits});
        rows += all_logits ? count : 1;
    }
    const int64_t vocab = self.decoder->spec().vocab_size;
    std::unique_ptr<float[]> logits(new float[static_cast<size_t>(rows * vocab)]);
    {
        nb::gil_scoped_release release;
        self.decoder->forward(pool, parts, logits.get());
    }
    float* data = logits.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return {data, {static_cast<size_t>(rows), static_cast<size_t>(vocab)}, owner};
}

}  // namespace

void bind_decoder(nb::module_& m) {
    nb::class_<KvCache>(m, "KvCache")
        .def(
            "__init__",
            [](KvCache* self, int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t capacity,
               const std::string& dtype) {
                new (self) KvCache({layers, kv_heads, head_dim, capacity,
                                    static_cast<DType>(index_of(kDTypes, dtype, "KV cache dtype"))});
            },
            nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("capacity"), nb::arg("dtype") = "fp16")
        .def_prop_ro("length", &KvCache::length)
        .def_prop_ro("capacity", [](const KvCache& c) { return c.shape().capacity; })
        .def_prop_ro("bytes_reserved", &KvCache::bytes_reserved)
        .def("truncate", &KvCache::truncate, nb::arg("length"));

    nb::class_<BoundDecoder>(m, "Decoder")
        .def("__init__", &construct, nb::arg("spec"), nb::arg("packed"), nb::arg("vectors"), nb::arg("compute"),
             nb::arg("tier"))
        .def("forward", &forward, nb::arg("pool"), nb::arg("parts"))
        .def(
            "profile", [](BoundDecoder& d, bool on) { d.decoder->profile(on); }, nb::arg("on"))
        .def("phase_seconds", [](const BoundDecoder& d) {
            const PhaseTimes times = d.decoder->phase_times();
            nb::dict result;
            for (int i = 0; i < kPhases; i++) result[kPhaseNames[i]] = times.seconds[i];
            return result;
        });

    m.def("spec_fields", [] {  // what crosses, by struct
        nb::dict result;
        nb::list rope, spec;
#define X(field) rope.append(#field);
        ROPE_FIELDS(X)
#undef X
#define X(field) spec.append(#field);
        SPEC_FIELDS(X)
#undef X
        result["Rope"] = rope;
        result["ModelSpec"] = spec;
        return result;
    });
}
