// The decoder's door: checks a call, cuts it into chunks, keeps the scratch, enters the thread pool once.
#include "lowbit/decoder.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <unordered_set>

#include "forward.h"
#include "key_balance.h"

namespace lowbit {
namespace {

constexpr int64_t kChunkRows = 512;  // of a long prompt; bounds the scratch

}  // namespace

struct Decoder::Impl {
    const ModelSpec spec;
    const Weights weights;
    const Compute compute;
    const KernelTable& kernels;
    ResolvedWeights resolved;
    std::mutex entry;  // one pass at a time: the scratch is shared
    Scratch scratch;
    bool profiling = false;
    PhaseTimes times;

    Impl(ModelSpec s, Weights w, Compute c, const KernelTable& k)
        : spec(std::move(s)), weights(std::move(w)), compute(c), kernels(k) {
        check_spec(spec);
        resolved = resolve_weights(spec, weights);
        plan_buffers();
    }

    void plan_buffers();
    void carve(Carver& carver, int64_t rows, int threads, int64_t span_floats);
    void reserve(int64_t rows, int threads, int64_t span_floats);
    void check(const std::vector<Part>& parts) const;
    void balance_keys();
    std::vector<Chunk> plan(const std::vector<Part>& parts, bool hidden, float* out) const;
    void pass(ThreadPool& pool, const std::vector<Part>& parts, bool hidden, float* out, Probe* probe = nullptr);
};

// Widths, once: an input buffer is as wide as its widest reader.
void Decoder::Impl::plan_buffers() {
    const auto read_by = [&](InputBuffer& buffer, int64_t k, std::initializer_list<const Matrix*> readers) {
        for (const Matrix* m : readers)
            if (*m) buffer.read_by(*m, k, compute);
    };

    const ResolvedWeights& w = resolved;
    const bool separate = spec.residual == Residual::parallel_separate;
    for (const LayerWeights& l : w.layers) {
        read_by(scratch.normed, spec.hidden_size, {&l.qkv});
        read_by(separate ? scratch.ffn_normed : scratch.normed, spec.hidden_size, {&l.up});
        read_by(scratch.attended, spec.heads * spec.head_dim, {&l.o});
        read_by(scratch.activated, spec.ffn_size, {&l.down});
    }
    read_by(scratch.normed, spec.hidden_size, {w.head_in ? &w.head_in : &w.head});
    if (w.embedding_in) read_by(scratch.word, w.word_size, {&w.embedding_in});
    if (w.head_in) read_by(scratch.word, w.head_in.weight->layout.rows, {&w.head});

    scratch.x.written_by(spec.hidden_size);
    scratch.attention_delta.written_by(spec.hidden_size);
    scratch.ffn_delta.written_by(spec.hidden_size);
    scratch.qkv.written_by((spec.heads + 2 * spec.kv_heads) * spec.head_dim);
    scratch.up.written_by(w.layers.front().up.weight->layout.rows);
    scratch.logits.written_by(spec.vocab_size);
    for (const Rope& rope : spec.ropes)
        scratch.ropes.row_stride = std::max<int64_t>(scratch.ropes.row_stride, rope.dim);
}

void Decoder::Impl::carve(Carver& carver, int64_t rows, int threads, int64_t span_floats) {
    Scratch& s = scratch;
    for (OutputBuffer* b : {&s.x, &s.attention_delta, &s.ffn_delta, &s.qkv, &s.up})
        b->data = carver.take(rows * b->stride * 4);
    for (InputBuffer* b : {&s.normed, &s.ffn_normed, &s.attended, &s.activated, &s.word}) {
        b->data = carver.take(rows * b->stride * 4);
        b->rounded = b->rounding ? carver.take(b->rounded_bytes(rows)) : nullptr;
    }
    s.logits.data = carver.take(spec.vocab_size % kPanelRows ? std::min(rows, kHeadRows) * s.logits.stride * 4 : 0);
    s.ropes.rope_stride = rows * s.ropes.row_stride;
    s.ropes.data = carver.take(static_cast<int64_t>(spec.ropes.size()) * s.ropes.rope_stride * 4);
    s.attention_stride = round_up(attention_floats(spec), 1024);
    s.attention = carver.take(threads * s.attention_stride * 4);
    s.spans = carver.take(span_floats * 4);
}

void Decoder::Impl::reserve(int64_t rows, int threads, int64_t span_floats) {
    if (rows <= scratch.rows && threads <= scratch.threads && span_floats <= scratch.span_floats) return;
    rows = std::max(rows, scratch.rows);
    threads = std::max(threads, scratch.threads);
    // Sessions grow token by token: grow the room for their spans by leaps.
    if (span_floats > scratch.span_floats) span_floats = std::max(span_floats, 2 * scratch.span_floats);
    span_floats = std::max(span_floats, scratch.span_floats);
    Carver count(nullptr);
    carve(count, rows, threads, span_floats);
    scratch.rows = 0;  // the pointers are void until the memory is there
    scratch.memory = Reservation();
    scratch.memory = Reservation(count.used());
    Carver cut(scratch.memory.data());
    carve(cut, rows, threads, span_floats);
    scratch.rows = rows;
    scratch.threads = threads;
    scratch.span_floats = span_floats;
}

void Decoder::Impl::check(const std::vector<Part>& parts) const {
    std::unordered_set<const KvCache*> seen;
    for (const Part& part : parts) {
        if (part.count < 1) throw std::invalid_argument("a part has no tokens; give each session at least one");
        if (!seen.insert(part.cache).second)
            throw std::invalid_argument("a KvCache stands in two parts of one call; join their tokens");
        const KvShape& have = part.cache->shape();
        if (have.layers != spec.layers || have.kv_heads != spec.kv_heads || have.head_dim != spec.head_dim)
            throw std::invalid_argument("a KvCache for " + std::to_string(have.layers) + " layers of " +
                                        std::to_string(have.kv_heads) + " heads of " + std::to_string(have.head_dim) +
                                        " does not fit this " + spec.family + " model (" + std::to_string(spec.layers) +
                                        ", " + std::to_string(spec.kv_heads) + ", " + std::to_string(spec.head_dim) +
                                        ")");
        const int64_t end = part.cache->length() + part.count;
        const auto too_long = [&](const char* what, int64_t room) {
            throw std::length_error(std::to_string(part.count) + " tokens after " +
                                    std::to_string(part.cache->length()) + " make " + std::to_string(end) + ", but " +
                                    what + " " + std::to_string(room) + "; shorten the prompt or raise the context");
        };
        if (end > have.capacity) too_long("the session's context is", have.capacity);
        if (resolved.position_embedding &&
            end + spec.learned_position_offset > resolved.position_embedding.weight->layout.rows)
            too_long("the model's learned positions are",
                     resolved.position_embedding.weight->layout.rows - spec.learned_position_offset);
        for (int64_t i = 0; i < part.count; i++)
            if (part.tokens[i] < 0 || part.tokens[i] >= spec.vocab_size)
                throw std::invalid_argument("token id " + std::to_string(part.tokens[i]) +
                                            " is outside the vocabulary of " + std::to_string(spec.vocab_size));
    }
}

// Once, by the first int8 cache: other caches need none of it, and it reads the weights of all keys.
void Decoder::Impl::balance_keys() {
    for (int64_t i = 0; i < spec.layers; i++)
        if (LayerWeights& layer = resolved.layers[i]; layer.key_balance.empty())
            layer.key_balance = key_balance(spec, layer, i);
}

std::vector<Chunk> Decoder::Impl::plan(const std::vector<Part>& parts, bool hidden, float* out) const {
    std::vector<Chunk> chunks;
    const int64_t width = hidden ? spec.hidden_size : spec.vocab_size;
    for (const Part& part : parts) {
        for (int64_t done = 0; done < part.count;) {
            if (chunks.empty() || static_cast<int64_t>(chunks.back().rows.size()) == kChunkRows) {
                chunks.emplace_back();
                chunks.back().hidden = hidden;
                chunks.back().out = out;
            }
            Chunk& chunk = chunks.back();
            const int64_t first_row = static_cast<int64_t>(chunk.rows.size());
            const int64_t count = std::min(kChunkRows - first_row, part.count - done),
                          position = part.cache->length() + done;
            chunk.segments.push_back({first_row, count, position, part.cache});
            chunk.span_floats += plan_spans(spec, part.count, chunk.segments.back(), chunk.span_floats);
            for (int64_t i = 0; i < count; i++) {
                chunk.rows.push_back({part.cache, part.tokens[done + i], position + i});
                if (part.all_logits || done + i + 1 == part.count) {
                    chunk.logit_rows.push_back(first_row + i);
                    out += width;
                }
            }
            done += count;
        }
    }
    return chunks;
}

void Decoder::Impl::pass(ThreadPool& pool, const std::vector<Part>& parts, bool hidden, float* out, Probe* probe) {
    if (parts.empty()) return;
    std::lock_guard<std::mutex> guard(entry);
    check(parts);
    for (const Part& part : parts)
        if (part.cache->shape().type == KvType::int8) balance_keys();
    for (const Part& part : parts) part.cache->grow(part.count);
    const std::vector<Chunk> chunks = plan(parts, hidden, out);
    int64_t rows = 0, span_floats = 0;
    for (const Chunk& chunk : chunks) {
        rows = std::max(rows, static_cast<int64_t>(chunk.rows.size()));
        span_floats = std::max(span_floats, chunk.span_floats);
    }
    reserve(rows, pool.size(), span_floats);
    const Engine engine{spec, resolved, kernels, scratch, profiling ? &times : nullptr, probe};
    pool.run([&](Team& team) {
        for (const Chunk& chunk : chunks) run_chunk(team, engine, chunk);
    });
    for (const Part& part : parts) part.cache->advance(part.count);
}

Decoder::Decoder(ModelSpec spec, Weights weights, Compute compute, const KernelTable& kernels)
    : impl_(std::make_unique<Impl>(std::move(spec), std::move(weights), compute, kernels)) {}
Decoder::~Decoder() = default;

const ModelSpec& Decoder::spec() const { return impl_->spec; }

void Decoder::forward(ThreadPool& pool, const std::vector<Part>& parts, float* logits) {
    impl_->pass(pool, parts, false, logits);
}

void Decoder::hidden_states(ThreadPool& pool, const std::vector<Part>& parts, float* out) {
    impl_->pass(pool, parts, true, out);
}

std::map<std::string, double> Decoder::activation_errors(ThreadPool& pool, const int32_t* tokens, int64_t count) {
    const ModelSpec& s = impl_->spec;
    KvCache cache({s.layers, s.kv_heads, s.head_dim, std::max<int64_t>(count, 1), KvType::fp32});
    Probe probe(impl_->weights, std::min(std::max<int64_t>(count, 1), kChunkRows));
    std::vector<float> logits(static_cast<size_t>(std::max<int64_t>(count, 1) * s.vocab_size));
    impl_->pass(pool, {{&cache, tokens, count, true}}, false, logits.data(), &probe);
    return probe.errors();
}

void Decoder::profile(bool on) {
    std::lock_guard<std::mutex> guard(impl_->entry);
    impl_->profiling = on;
    impl_->times = {};
}

PhaseTimes Decoder::phase_times() const {
    std::lock_guard<std::mutex> guard(impl_->entry);
    return impl_->times;
}

}  // namespace lowbit
