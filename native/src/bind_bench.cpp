// What benchmarks need timed inside one call: memory read by several streams, and linear products over weights that
// lie behind each other. Nothing of the library uses this.
#include <time.h>

#include <algorithm>
#include <stdexcept>

#include "bind.h"
#include "buffers.h"
#include "lowbit/linear.h"
#include "lowbit/peak.h"
#include "lowbit/read_lines.h"

using namespace lowbit;

namespace {

double clock_seconds(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Wall time of a job, and the largest CPU time a member of the team spent at work: on a machine where other processes
// take their turns, the second is what the job would need alone.
struct Times {
    double start = clock_seconds(CLOCK_MONOTONIC), wall = 0;
    std::vector<double> cpu;

    explicit Times(int members) : cpu(static_cast<size_t>(members)) {}
    template <class Work>
    void member(const Team& team, Work work) {
        const double before = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
        work();
        cpu[static_cast<size_t>(team.id())] += clock_seconds(CLOCK_THREAD_CPUTIME_ID) - before;
    }
    std::pair<double, double> stop() {
        wall = clock_seconds(CLOCK_MONOTONIC) - start;
        return {wall, *std::max_element(cpu.begin(), cpu.end())};
    }
};

std::pair<double, double> read_seconds(ThreadPool& pool, const Bytes& data, int streams, int64_t ahead) {
    if (streams < 1 || streams > 16) throw std::invalid_argument("streams must be 1 ... 16");
    nb::gil_scoped_release release;
    Times times(pool.size());
    pool.run([&](Team& team) {
        const Team::Range mine = team.slice(static_cast<int64_t>(data.shape(0)) / kLine * kLine, kLine);
        times.member(team, [&] { read_lines(data.data() + mine.begin, mine.end - mine.begin, streams, ahead); });
    });
    return times.stop();
}

// One product with each of the weights that fill `data`, as a decoder does it: activations prepared once, a barrier after
// every product.
std::pair<double, double> linear_seconds(ThreadPool& pool, int tier, int compute, int format, int64_t rows, int64_t k, int group_size,
                      const Bytes& data, const Floats& x) {
    const Format* f = find_format(format);
    if (!f) throw std::invalid_argument("unknown format id " + std::to_string(format));
    const Compute type = compute_of(compute);
    const Rounding rounding = Rounding::of(*f, type);
    const KernelTable& kernels = kernels_of(tier);
    PackedView w;
    w.format = f;
    w.layout = layout_of(*f, rows, k, group_size);
    const int64_t count = static_cast<int64_t>(data.shape(0)) / w.layout.bytes, m = static_cast<int64_t>(x.shape(0));
    if (static_cast<int64_t>(x.shape(1)) != w.layout.k_padded) throw std::invalid_argument("x must have k_padded columns");
    const int64_t k_padded = w.layout.k_padded, x_stride = row_stride(k_padded), y_stride = row_stride(w.layout.panels * kPanelRows);
    nb::gil_scoped_release release;
    // Memory and strides as a decoder has them.
    const auto carve = [&](Carver& c) {
        struct { float *x, *y, *scratch; } at{c.take(m * x_stride * 4), c.take(m * y_stride * 4), c.take(linear_input_bytes(m, k_padded, rounding))};
        return at;
    };
    Carver count_only(nullptr);
    carve(count_only);
    const Reservation memory(count_only.used());
    Carver carver(memory.data());
    const auto [rows_of_x, y, scratch] = carve(carver);
    for (int64_t i = 0; i < m; i++) std::copy_n(x.data() + i * k_padded, k_padded, rows_of_x + i * x_stride);
    LinearInput input = linear_input(rows_of_x, x_stride, m, k, k_padded, type, rounding, scratch);
    float* const out = y;
    std::fill_n(out, m * y_stride, 0.0f);  // page faults are not to be timed
    Times times(pool.size());
    pool.run([&](Team& team) {
        prepare_input(team, kernels, input);
        team.barrier();
        for (int64_t i = 0; i < count; i++) {
            PackedView each = w;
            each.data = data.data() + i * w.layout.bytes;
            times.member(team, [&] { linear(team, kernels, each, nullptr, input, out, y_stride); });
            team.barrier();
        }
    });
    return times.stop();
}

Peak peak_of(Tier tier, int compute) {
    if (compute == 2 && has_bf16_kernels(kernel_table(tier).linear))
        return tier == Tier::amx ? amx::peak_bf16 : avx512::peak_bf16;
    if (compute != 0) return tier >= Tier::avx512 ? avx512::peak_fp32 : avx2::peak_fp32;
    if (tier == Tier::amx) return amx::peak_int8;
    if (tier == Tier::avx512) return avx512::peak_int8;
    return cpu_features().avx_vnni ? avx2::peak_int8_vnni : avx2::peak_int8;
}

// Register-only multiply-adds per second of all threads in the instruction a tier's products are made of.
std::pair<double, double> peak_rate(ThreadPool& pool, int tier, int compute, double seconds) {
    kernels_of(tier);  // throws where the tier is not available
    if (tier == static_cast<int>(Tier::scalar)) throw std::invalid_argument("the scalar tier has no such loop");
    const Peak peak = peak_of(static_cast<Tier>(tier), compute);
    nb::gil_scoped_release release;
    Times times(pool.size());
    std::vector<int64_t> done(static_cast<size_t>(pool.size()));
    pool.run([&](Team& team) {
        times.member(team, [&] {
            const double end = clock_seconds(CLOCK_THREAD_CPUTIME_ID) + seconds;
            while (clock_seconds(CLOCK_THREAD_CPUTIME_ID) < end) done[static_cast<size_t>(team.id())] += peak(10000);
        });
    });
    double total = 0;
    for (const int64_t n : done) total += static_cast<double>(n);
    const auto [wall, cpu] = times.stop();
    return {total / wall, total / cpu};
}

}  // namespace

void bind_bench(nb::module_& m) {
    m.def("peak_rate", &peak_rate, nb::arg("pool"), nb::arg("tier"), nb::arg("compute"), nb::arg("seconds"),
          "Multiply-adds per second (wall time, CPU time) of all threads, in registers alone, for about `seconds` each.");
    m.def("read_seconds", &read_seconds, nb::arg("pool"), nb::arg("data"), nb::arg("streams"), nb::arg("ahead"),
          "(wall seconds, CPU seconds of the slowest thread) to read `data` (64-byte aligned) once with all threads.");
    m.def("linear_seconds", &linear_seconds, nb::arg("pool"), nb::arg("tier"), nb::arg("compute"), nb::arg("format"),
          nb::arg("rows"), nb::arg("k"), nb::arg("group_size"), nb::arg("data"), nb::arg("x"),
          "(wall seconds, CPU seconds of the slowest thread) for one product with every packed weight in `data`.");
}
