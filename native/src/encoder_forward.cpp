// Interprets an EncoderSpec: the order of phases of a pass, separated by team barriers. Biases are added where a
// product's result is read next, while it is in the cache.
#include "encoder_forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "lowbit/pack.h"

namespace lowbit {
namespace {

// One thread's walk through the phases. Everything it reads is shared; `mark` ends a phase.
class EncoderPass {
public:
    EncoderPass(const EncoderEngine& e, Team& team, const TextChunk& chunk)
        : e_(e),
          s_(e.spec),
          w_(e.weights),
          k_(e.kernels),
          b_(e.scratch),
          team_(team),
          chunk_(chunk),
          rows_(chunk.rows),
          mine_(team.slice(chunk.rows)),
          pre_(e.spec.norm_place == NormPlace::pre),
          last_(Clock::now()) {}

    void run() {
        embed();
        for (int64_t i = 0; i < s_.layers; i++) layer(i);
        for (int64_t r = mine_.begin; r < mine_.end; r++)
            if (s_.final_norm) norm(w_.final_norm, b_.x.row(r), b_.x.row(r));
        mark(Phase::norm);
        switch (e_.output.kind) {
            case EncoderOutput::Kind::hidden: hidden(); break;
            case EncoderOutput::Kind::pooled: pooled(); break;
            case EncoderOutput::Kind::scores: scores(); break;
        }
        mark(Phase::head);
    }

private:
    using Clock = std::chrono::steady_clock;

    // Ends a phase: all members have finished it. Member 0 keeps the time.
    void mark(Phase phase) {
        team_.barrier();
        if (e_.times && team_.id() == 0) {
            const auto now = Clock::now();
            e_.times->seconds[static_cast<int>(phase)] += std::chrono::duration<double>(now - last_).count();
            last_ = now;
        }
    }

    void norm(const Norm& n, const float* x, float* y) const {
        k_.vector.layer_norm(x, n.weight, n.bias, 0.0f, s_.norm_eps, s_.hidden_size, y);
    }

    void product(const Matrix& m, const LinearInput& in, const OutputBuffer& out) {
        if (e_.probe)
            e_.probe->product(team_, k_, m, nullptr, in, out.data, out.stride);
        else
            linear(team_, k_, *m.weight, nullptr, m.reads(in), out.data, out.stride);
    }

    void embed() {
        const LinearInput x = b_.x.input(rows_);
        for (const TextRows& text : chunk_.texts) {
            const int64_t begin = std::max(mine_.begin, text.first_row),
                          end = std::min(mine_.end, text.first_row + text.rows);
            for (int64_t r = begin; r < end; r++) {
                const int64_t position = r - text.first_row;
                float *to = b_.x.row(r), *extra = b_.delta.row(r);
                gather_rows(*w_.embedding.weight, e_.texts.tokens + text.first_token + position, 1, to, 0);
                const auto add = [&](const Matrix& table, int32_t row) {
                    if (!table) return;
                    gather_rows(*table.weight, &row, 1, extra, 0);
                    k_.vector.add(to, extra, 1.0f, s_.hidden_size);
                };
                add(w_.token_type_embedding, e_.texts.types ? e_.texts.types[text.first_token + position] : 0);
                add(w_.position_embedding, static_cast<int32_t>(position + s_.learned_position_offset));
                if (w_.embedding_norm.weight) norm(w_.embedding_norm, to, to);
                if (!pre_) quantize_columns(k_, x, r, 0, s_.hidden_size);
            }
        }
        mark(Phase::embed);
    }

    // What a block of the model reads: the rows themselves where norms stand behind the blocks, else the norm of them.
    const LinearInput enter(const Norm& n) {
        if (!pre_) return b_.x.input(rows_);
        const LinearInput normed = b_.normed.input(rows_);
        for (int64_t r = mine_.begin; r < mine_.end; r++) {
            if (n.weight)
                norm(n, b_.x.row(r), b_.normed.row(r));
            else
                std::copy_n(b_.x.row(r), s_.hidden_size, b_.normed.row(r));
            quantize_columns(k_, normed, r, 0, s_.hidden_size);
        }
        mark(Phase::norm);
        return normed;
    }

    // x += delta + bias for rows [first, first + count), with the norm that stands behind the addition.
    void leave(const Matrix& m, const Norm& n, int64_t first, int64_t count) {
        const LinearInput x = b_.x.input(rows_);
        const Team::Range share = team_.slice(count);
        for (int64_t r = first + share.begin; r < first + share.end; r++) {
            float* to = b_.x.row(r);
            k_.vector.add(to, b_.delta.row(r), 1.0f, s_.hidden_size);
            if (m.bias) k_.vector.add(to, m.bias, 1.0f, s_.hidden_size);
            if (pre_) continue;
            norm(n, to, to);
            quantize_columns(k_, x, r, 0, s_.hidden_size);
        }
        mark(Phase::norm);
    }

    void layer(int64_t index) {
        const EncoderLayer& w = w_.layers[index];
        const LinearInput entered = enter(w.attention_norm), attended = b_.attended.input(rows_);
        if (b_.alone)
            attention_by_heads(w, index, entered, attended);
        else
            attention(w, index, entered, attended);
        product(w.o, attended, b_.delta);
        mark(Phase::o);
        leave(w.o, w.attention_norm, 0, rows_);
        const LinearInput in = enter(w.ffn_norm);
        if (b_.alone) return ffn_by_columns(w, in);
        for (int64_t first = 0; first < rows_; first += kFfnRows) ffn(w, in, first, std::min(kFfnRows, rows_ - first));
    }

    void attention(const EncoderLayer& w, int64_t index, const LinearInput& entered, const LinearInput& attended) {
        product(w.qkv, entered, b_.qkv);
        mark(Phase::qkv);
        attend(team_, e_, chunk_, index);
        mark(Phase::attention);
        for_share(team_, rows_, attended.k, kActivationK,
                  [&](int64_t r, int64_t begin, int64_t end) { quantize_columns(k_, attended, r, begin, end); });
        mark(Phase::attention);
    }

    // A few heads at a time, so that their q, k and v stay in the cache.
    void attention_by_heads(const EncoderLayer& w, int64_t index, const LinearInput& entered, const LinearInput& attended) {
        const int64_t together = heads_together(s_), width = together * s_.head_dim;
        for (int64_t head = 0; head < s_.heads; head += together) {
            const int64_t heads = std::min(together, s_.heads - head), first = head * s_.head_dim, columns = heads * s_.head_dim;
            for (int64_t which = 0; which < 3; which++)
                linear_columns(k_, *w.qkv.weight, which * s_.heads * s_.head_dim + first, columns, w.qkv.reads(entered),
                               b_.qkv.data + which * width, b_.qkv.stride);
            mark(Phase::qkv);
            attend_heads(e_, chunk_, index, head, heads);
            for (int64_t r = 0; r < rows_; r++) b_.attended.put(k_, attended, r, first, first + columns, b_.qkv.row(r));
            mark(Phase::attention);
        }
    }

    // Where the columns of `up` for columns [begin, end) of the inner layer begin, and how many they are. Gate and up alternate in
    // whole panels, so theirs end where a panel ends.
    Team::Range up_columns(int64_t begin, int64_t end) const {
        const int64_t start = s_.gated ? 2 * begin : begin;
        return {start, start + (s_.gated ? 2 * round_up(end - begin, kPanelRows) : end - begin)};
    }

    // Columns [begin, end) of the inner layer from those of `up`, which get their bias on the way.
    void activate(const EncoderLayer& w, int64_t begin, int64_t end, float* up, float* to) const {
        const Team::Range columns = up_columns(begin, end);
        if (w.up.bias) k_.vector.add(up, w.up.bias + columns.begin, 1.0f, columns.end - columns.begin);
        if (s_.gated)
            k_.vector.activate_gated(s_.activation, up, end - begin, to);
        else
            k_.vector.activate(s_.activation, up, end - begin, to);
    }

    void ffn_by_columns(const EncoderLayer& w, const LinearInput& in) {
        const LinearInput activated = b_.activated.input(rows_);
        for (int64_t begin = 0; begin < s_.ffn_size; begin += kFfnColumns) {
            const int64_t end = std::min(begin + kFfnColumns, s_.ffn_size);
            const Team::Range columns = up_columns(begin, end);
            linear_columns(k_, *w.up.weight, columns.begin, columns.end - columns.begin, w.up.reads(in), b_.up.data, b_.up.stride);
            mark(Phase::up);
            float values[kFfnColumns];
            for (int64_t r = 0; r < rows_; r++) {
                activate(w, begin, end, b_.up.row(r), values);
                b_.activated.put(k_, activated, r, begin, end, values);
            }
            mark(Phase::activate);
        }
        product(w.down, activated, b_.delta);
        mark(Phase::down);
        leave(w.down, w.ffn_norm, 0, rows_);
    }

    void ffn(const EncoderLayer& w, const LinearInput& in, int64_t first, int64_t count) {
        product(w.up, rows_of(in, first, count), b_.up);
        mark(Phase::up);
        const LinearInput activated = b_.activated.input(count);
        for_share(team_, count, s_.ffn_size, 4 * kActivationK, [&](int64_t r, int64_t begin, int64_t end) {
            activate(w, begin, end, b_.up.row(r) + up_columns(begin, end).begin, b_.activated.row(r) + begin);
            quantize_columns(k_, activated, r, begin, end);
        });
        mark(Phase::activate);
        product(w.down, activated, {b_.delta.row(first), b_.delta.stride});
        mark(Phase::down);
        leave(w.down, w.ffn_norm, first, count);
    }

    void hidden() {
        for (const TextRows& text : chunk_.texts) {
            const int64_t begin = std::max(mine_.begin, text.first_row),
                          end = std::min(mine_.end, text.first_row + text.rows);
            for (int64_t r = begin; r < end; r++)
                std::copy_n(b_.x.row(r), s_.hidden_size,
                            e_.output.data + (text.first_token + r - text.first_row) * s_.hidden_size);
        }
    }

    // Adds up rows of a text into `to`, which is zero, each with its factor.
    template <class Factor>
    void sum(const TextRows& text, float* to, Factor factor) const {
        for (int64_t t = 0; t < text.rows; t++)
            k_.vector.add(to, b_.x.row(text.first_row + t), factor(t), s_.hidden_size);
    }

    void pool(const TextRows& text, Pooling pooling, float* to) const {
        const float count = static_cast<float>(text.rows);
        std::fill_n(to, s_.hidden_size, 0.0f);
        switch (pooling) {
            case Pooling::cls: std::copy_n(b_.x.row(text.first_row), s_.hidden_size, to); break;
            case Pooling::last: std::copy_n(b_.x.row(text.first_row + text.rows - 1), s_.hidden_size, to); break;
            case Pooling::mean: sum(text, to, [&](int64_t) { return 1.0f / count; }); break;
            case Pooling::mean_sqrt_len: sum(text, to, [&](int64_t) { return 1.0f / std::sqrt(count); }); break;
            case Pooling::weighted_mean:
                sum(text, to, [&](int64_t t) { return static_cast<float>(t + 1) / (count * (count + 1) / 2); });
                break;
            case Pooling::max:
                std::copy_n(b_.x.row(text.first_row), s_.hidden_size, to);
                for (int64_t t = 1; t < text.rows; t++) {
                    const float* x = b_.x.row(text.first_row + t);
                    for (int64_t i = 0; i < s_.hidden_size; i++) to[i] = std::max(to[i], x[i]);
                }
                break;
        }
    }

    void pooled() {
        const std::vector<Pooling>& poolings = *e_.output.poolings;
        const int64_t each = static_cast<int64_t>(poolings.size());
        const Team::Range texts = team_.slice(static_cast<int64_t>(chunk_.texts.size()));
        for (int64_t i = texts.begin; i < texts.end; i++)
            for (int64_t p = 0; p < each; p++)
                pool(chunk_.texts[i], poolings[p],
                     e_.output.data + (chunk_.texts[i].index * each + p) * s_.hidden_size);
    }

    float head_activation(float x) const {
        switch (s_.head_activation) {
            case HeadActivation::tanh: return std::tanh(x);
            case HeadActivation::relu: return x > 0 ? x : 0.0f;
            case HeadActivation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        }
        return x;
    }

    // pooled -> dense -> activation -> norm -> head, in buffers that the layers have done with.
    void scores() {
        const int64_t texts = static_cast<int64_t>(chunk_.texts.size());
        const Team::Range share = team_.slice(texts);
        const LinearInput in = b_.normed.input(texts);
        for (int64_t i = share.begin; i < share.end; i++) {
            pool(chunk_.texts[i], s_.head_pooling, b_.normed.row(i));
            quantize_columns(k_, in, i, 0, s_.hidden_size);
        }
        mark(Phase::head);
        if (w_.head_dense) {
            product(w_.head_dense, in, b_.delta);
            mark(Phase::head);
            for (int64_t i = share.begin; i < share.end; i++) {
                float *from = b_.delta.row(i), *to = b_.normed.row(i);
                if (w_.head_dense.bias) k_.vector.add(from, w_.head_dense.bias, 1.0f, s_.hidden_size);
                for (int64_t d = 0; d < s_.hidden_size; d++) to[d] = head_activation(from[d]);
                if (w_.head_norm.weight) norm(w_.head_norm, to, to);
                quantize_columns(k_, in, i, 0, s_.hidden_size);
            }
            mark(Phase::head);
        }
        product(w_.head, in, b_.qkv);
        mark(Phase::head);
        for (int64_t i = share.begin; i < share.end; i++)
            for (int64_t l = 0; l < s_.labels; l++)
                e_.output.data[chunk_.texts[i].index * s_.labels + l] =
                    b_.qkv.row(i)[l] + (w_.head.bias ? w_.head.bias[l] : 0.0f);
    }

    const EncoderEngine& e_;
    const EncoderSpec& s_;
    const EncoderWeights& w_;
    const KernelTable& k_;
    const EncoderScratch& b_;
    Team& team_;
    const TextChunk& chunk_;
    const int64_t rows_;
    const Team::Range mine_;  // of the chunk's rows
    const bool pre_;
    Clock::time_point last_;
};

}  // namespace

void run_chunk(Team& team, const EncoderEngine& engine, const TextChunk& chunk) {
    EncoderPass(engine, team, chunk).run();
}

}  // namespace lowbit
