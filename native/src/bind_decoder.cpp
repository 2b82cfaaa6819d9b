// Decoder and KvCache as Python sees them. A spec crosses as ModelSpec.to_dict(), field by field.
#include <nanobind/stl/map.h>
#include <nanobind/stl/unique_ptr.h>

#include "bind_model.h"
#include "lowbit/decoder.h"

using namespace lowbit;

namespace {

// The fields of ModelSpec in spec.h; a test holds them equal to spec.h and to models/_spec.py.
// clang-format off
#define SPEC_FIELDS(X)                                                                                                  \
    X(family) X(vocab_size) X(hidden_size) X(layers) X(heads) X(kv_heads) X(head_dim) X(ffn_size) X(context)            \
    X(norm) X(norm_place) X(norm_eps) X(norm_weight_offset) X(final_norm) X(qk_norm) X(qk_norm_whole) X(residual)       \
    X(residual_scale) X(embedding_scale) X(learned_position_offset) X(ropes) X(layer_rope) X(alibi_slopes)              \
    X(attention_scale) X(attention_softcap) X(layer_attention_scale) X(attention_logn_from) X(layer_window) X(clip_qkv) \
    X(gated) X(activation) X(tied_head) X(logit_scale) X(logit_softcap)
// clang-format on

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

using BoundDecoder = Bound<Decoder>;
using Items = std::vector<std::tuple<nb::object, Tokens, bool>>;

// Calls `pass` of the decoder for [rows][width] results.
Rows run(BoundDecoder& self, ThreadPool& pool, const Items& items, int64_t width,
         void (Decoder::*pass)(ThreadPool&, const std::vector<Part>&, float*)) {
    std::vector<Part> parts;
    int64_t rows = 0;
    for (const auto& [cache, tokens, all_logits] : items) {
        const int64_t count = static_cast<int64_t>(tokens.shape(0));
        parts.push_back({nb::cast<KvCache*>(cache), tokens.data(), count, all_logits});
        rows += all_logits ? count : 1;
    }
    return rows_of(rows, width, [&](float* out) { ((*self.model).*pass)(pool, parts, out); });
}

Rows forward(BoundDecoder& self, ThreadPool& pool, const Items& items) {
    return run(self, pool, items, self.model->spec().vocab_size, &Decoder::forward);
}

Rows hidden_states(BoundDecoder& self, ThreadPool& pool, const Items& items) {
    return run(self, pool, items, self.model->spec().hidden_size, &Decoder::hidden_states);
}

std::map<std::string, double> activation_errors(BoundDecoder& self, ThreadPool& pool, Tokens tokens) {
    nb::gil_scoped_release release;
    return self.model->activation_errors(pool, tokens.data(), static_cast<int64_t>(tokens.shape(0)));
}

}  // namespace

void bind_decoder(nb::module_& m) {
    nb::class_<KvCache>(m, "KvCache")
        .def(
            "__init__",
            [](KvCache* self, int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t capacity,
               const std::string& dtype) {
                new (self) KvCache({layers, kv_heads, head_dim, capacity,
                                    static_cast<KvType>(index_of(kKvTypeNames, dtype, "KV cache dtype"))});
            },
            nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("capacity"), nb::arg("dtype") = "int16")
        .def_prop_ro("length", &KvCache::length)
        .def_prop_ro("capacity", [](const KvCache& c) { return c.shape().capacity; })
        .def_prop_ro("bytes_per_position", &KvCache::bytes_per_position)
        .def("fill", &KvCache::fill, nb::arg("length"))
        .def("truncate", &KvCache::truncate, nb::arg("length"))
        .def("fork", &KvCache::fork, nb::arg("length"));
    m.def("kv_bytes", &KvCache::bytes, nb::arg("caches"));

    bind_model<Decoder>(m, "Decoder", read_spec)
        .def("forward", &forward, nb::arg("pool"), nb::arg("parts"))
        .def("hidden_states", &hidden_states, nb::arg("pool"), nb::arg("parts"))
        .def("activation_errors", &activation_errors, nb::arg("pool"), nb::arg("tokens"));

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
