// The encoder's door: checks a call, cuts it into chunks of whole texts, keeps the scratch, enters the thread pool
// once.
#include "lowbit/encoder.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include "encoder_forward.h"
#include "rope.h"

namespace lowbit {
namespace {

// Rows that go through the layers together; a longer text is a chunk of its own. A chunk of one member alone stays in that core's
// cache (256 rows) and is large enough for the kernels for many rows (64).
constexpr int64_t kTeamRows = 1024, kMemberRows = 256, kFewestMemberRows = 64, kLongestMemberText = 512;
constexpr int64_t kChunksPerMember = 4;  // what one member has left to do when the others are done is less than one of them

std::vector<TextChunk> cut(const Texts& texts, int64_t most_rows) {
    std::vector<TextChunk> chunks;
    int64_t begin = 0;
    for (int64_t i = 0; i < texts.count; i++) {
        const int64_t count = texts.ends[i] - begin;
        if (chunks.empty() || chunks.back().rows + count > most_rows) chunks.emplace_back();
        TextChunk& chunk = chunks.back();
        chunk.texts.push_back({chunk.rows, count, begin, i});
        chunk.rows += count;
        chunk.longest = std::max(chunk.longest, count);
        begin += count;
    }
    return chunks;
}

}  // namespace

void PositionTables::reach(const EncoderSpec& spec, int64_t count) {
    if (count <= positions || spec.ropes.empty()) return;
    ropes.resize(spec.ropes.size());
    for (size_t i = 0; i < ropes.size(); i++) {
        const Rope& rope = spec.ropes[i];
        ropes[i].resize(count * rope.dim);
        for (int64_t p = positions; p < count; p++)
            fill_rope(rope.inv_freq, rope.scale, p, ropes[i].data() + p * rope.dim);
    }
    positions = count;
}

struct Encoder::Impl {
    const EncoderSpec spec;
    const Weights weights;
    const Compute compute;
    const KernelTable& kernels;
    const EncoderWeights resolved;
    std::mutex entry;  // one pass at a time: the scratch is shared
    EncoderScratch scratch;                      // of the team
    std::vector<EncoderScratch> member_scratch;  // where members work alone
    PositionTables positions;
    bool profiling = false;
    PhaseTimes times;

    Impl(EncoderSpec s, Weights w, Compute c, const KernelTable& k)
        : spec(std::move(s)),
          weights(std::move(w)),
          compute(c),
          kernels(k),
          resolved(resolve_weights(spec, weights)) {
        plan_buffers(scratch);
    }

    void plan_buffers(EncoderScratch& s) const;
    void carve(EncoderScratch& s, Carver& carver, int64_t rows, int64_t longest, int threads) const;
    void reserve(EncoderScratch& s, const std::vector<TextChunk>& chunks, int threads) const;
    int64_t member_rows(const Texts& texts, int threads) const;
    void check(const Texts& texts) const;
    void pass(ThreadPool& pool, const Texts& texts, const EncoderOutput& output, Probe* probe = nullptr);
};

// Widths, once: an input buffer is as wide as its widest reader.
void Encoder::Impl::plan_buffers(EncoderScratch& scratch) const {
    const bool pre = spec.norm_place == NormPlace::pre;
    InputBuffer& entered = pre ? scratch.normed : scratch.x;
    const int64_t hidden = spec.hidden_size, inner = spec.heads * spec.head_dim;
    for (const EncoderLayer& l : resolved.layers) {
        entered.read_by(l.qkv, hidden, compute);
        entered.read_by(l.up, hidden, compute);
        scratch.attended.read_by(l.o, inner, compute);
        scratch.activated.read_by(l.down, spec.ffn_size, compute);
    }
    for (const Matrix* m : {&resolved.head_dense, &resolved.head})
        if (*m) scratch.normed.read_by(*m, hidden, compute);
    scratch.x.stride = std::max(scratch.x.stride, row_stride(round_up(hidden, kPanelRows)));
    scratch.qkv.written_by(3 * (scratch.alone ? heads_together(spec) * spec.head_dim : inner));
    scratch.delta.written_by(hidden);
    scratch.up.written_by(scratch.alone ? (spec.gated ? 2 : 1) * kFfnColumns : resolved.layers.front().up.weight->layout.rows);
}

void Encoder::Impl::carve(EncoderScratch& s, Carver& carver, int64_t rows, int64_t longest, int threads) const {
    const int64_t ffn_rows = s.alone ? rows : std::min(rows, kFfnRows);
    for (OutputBuffer* b : {&s.qkv, &s.delta, &s.up})
        b->data = carver.take((b == &s.up ? ffn_rows : rows) * b->stride * 4);
    for (InputBuffer* b : {&s.x, &s.normed, &s.attended, &s.activated}) {
        const int64_t count = b == &s.activated ? ffn_rows : rows;
        b->data = carver.take(count * b->stride * 4);
        b->rounded = b->rounding ? carver.take(b->rounded_bytes(count)) : nullptr;
    }
    s.attention_stride = round_up(attention_floats(spec, longest), 1024);
    s.attention = carver.take(threads * s.attention_stride * 4);
}

void Encoder::Impl::reserve(EncoderScratch& scratch, const std::vector<TextChunk>& chunks, int threads) const {
    int64_t rows = 0, longest = 0;
    for (const TextChunk& chunk : chunks) {
        rows = std::max(rows, chunk.rows);
        longest = std::max(longest, chunk.longest);
    }
    if (rows <= scratch.rows && longest <= scratch.longest && threads <= scratch.threads) return;
    rows = std::max(rows, scratch.rows);
    longest = std::max(longest, scratch.longest);
    threads = std::max(threads, scratch.threads);
    Carver count(nullptr);
    carve(scratch, count, rows, longest, threads);
    scratch.rows = 0;  // the pointers are void until the memory is there
    scratch.memory = Reservation();
    scratch.memory = Reservation(count.used());
    Carver cut(scratch.memory.data());
    carve(scratch, cut, rows, longest, threads);
    scratch.rows = rows;
    scratch.longest = longest;
    scratch.threads = threads;
}

void Encoder::Impl::check(const Texts& texts) const {
    int64_t begin = 0;
    for (int64_t i = 0; i < texts.count; i++) {
        const int64_t end = texts.ends[i];
        if (end <= begin)
            throw std::invalid_argument("text " + std::to_string(i) + " has no tokens; give each at least one");
        if (resolved.position_embedding &&
            end - begin + spec.learned_position_offset > resolved.position_embedding.weight->layout.rows)
            throw std::length_error(
                "text " + std::to_string(i) + " has " + std::to_string(end - begin) +
                " tokens, the model has learned " +
                std::to_string(resolved.position_embedding.weight->layout.rows - spec.learned_position_offset) +
                " positions; truncate the text");
        begin = end;
    }
    for (int64_t t = 0; t < begin; t++) {
        if (texts.tokens[t] < 0 || texts.tokens[t] >= spec.vocab_size)
            throw std::invalid_argument("token id " + std::to_string(texts.tokens[t]) +
                                        " is outside the vocabulary of " + std::to_string(spec.vocab_size));
        if (texts.types && spec.token_types && (texts.types[t] < 0 || texts.types[t] >= spec.token_types))
            throw std::invalid_argument("token type " + std::to_string(texts.types[t]) + " is not among the model's " +
                                        std::to_string(spec.token_types));
    }
}

// Rows of a chunk when every member works through chunks of its own, without barriers and taking as many as it finds time for; 0
// where there are too few rows for that or a text is too long.
int64_t Encoder::Impl::member_rows(const Texts& texts, int threads) const {
    // Members compute whole panels of each head.
    if (spec.heads * spec.head_dim % kPanelRows) return 0;
    int64_t begin = 0;
    for (int64_t i = 0; i < texts.count; begin = texts.ends[i++])
        if (texts.ends[i] - begin > kLongestMemberText) return 0;
    const int64_t rows = std::min(kMemberRows, threads == 1 ? begin : begin / (kChunksPerMember * threads));
    return rows < kFewestMemberRows ? 0 : rows;
}

void Encoder::Impl::pass(ThreadPool& pool, const Texts& texts, const EncoderOutput& output, Probe* probe) {
    if (texts.count == 0) return;
    std::lock_guard<std::mutex> guard(entry);
    check(texts);
    const int64_t alone = probe ? 0 : member_rows(texts, pool.size());  // members alone cut products into columns
    const std::vector<TextChunk> chunks = cut(texts, alone ? alone : kTeamRows);
    for (const TextChunk& chunk : chunks) positions.reach(spec, chunk.longest);
    const auto engine = [&](const EncoderScratch& s, PhaseTimes* to) {
        return EncoderEngine{spec, resolved, kernels, s, positions, texts, output, profiling ? to : nullptr, probe};
    };
    if (!alone) {
        reserve(scratch, chunks, pool.size());
        pool.run([&](Team& team) {
            for (const TextChunk& chunk : chunks) run_chunk(team, engine(scratch, &times), chunk);
        });
        return;
    }
    while (member_scratch.size() < static_cast<size_t>(pool.size())) {
        member_scratch.emplace_back().alone = true;
        plan_buffers(member_scratch.back());
    }
    for (EncoderScratch& s : member_scratch) reserve(s, chunks, 1);
    std::atomic<size_t> next = 0;
    pool.run([&](Team& team) {
        Team member = Team::of_one();
        const EncoderEngine mine = engine(member_scratch[team.id()], team.id() == 0 ? &times : nullptr);
        for (size_t i; (i = next.fetch_add(1)) < chunks.size();) run_chunk(member, mine, chunks[i]);
    });
}

Encoder::Encoder(EncoderSpec spec, Weights weights, Compute compute, const KernelTable& kernels)
    : impl_(std::make_unique<Impl>(std::move(spec), std::move(weights), compute, kernels)) {}
Encoder::~Encoder() = default;

const EncoderSpec& Encoder::spec() const { return impl_->spec; }

void Encoder::hidden_states(ThreadPool& pool, const Texts& texts, float* out) {
    impl_->pass(pool, texts, {EncoderOutput::Kind::hidden, nullptr, out});
}

void Encoder::embed(ThreadPool& pool, const Texts& texts, const std::vector<Pooling>& poolings, float* out) {
    impl_->pass(pool, texts, {EncoderOutput::Kind::pooled, &poolings, out});
}

void Encoder::classify(ThreadPool& pool, const Texts& texts, float* out) {
    if (!impl_->spec.labels)
        throw std::invalid_argument("this " + impl_->spec.family + " model has no classification head");
    impl_->pass(pool, texts, {EncoderOutput::Kind::scores, nullptr, out});
}

std::map<std::string, double> Encoder::activation_errors(ThreadPool& pool, const Texts& texts) {
    const EncoderSpec& s = impl_->spec;
    const int64_t tokens = texts.count ? texts.ends[texts.count - 1] : 0;
    Probe probe(impl_->weights, tokens);
    std::vector<float> out(static_cast<size_t>(s.labels ? texts.count * s.labels : tokens * s.hidden_size));
    const auto kind = s.labels ? EncoderOutput::Kind::scores : EncoderOutput::Kind::hidden;
    impl_->pass(pool, texts, {kind, nullptr, out.data()}, &probe);
    return probe.errors();
}

void Encoder::profile(bool on) {
    std::lock_guard<std::mutex> guard(impl_->entry);
    impl_->profiling = on;
    impl_->times = {};
}

PhaseTimes Encoder::phase_times() const {
    std::lock_guard<std::mutex> guard(impl_->entry);
    return impl_->times;
}

}  // namespace lowbit
