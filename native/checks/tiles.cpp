// Products on real tile instructions against others to the last bit: every format with int8 compute against the avx512 tier, every
// format with bf16 compute against the model of the instructions; ragged shapes, few and many rows. It runs without an operating
// system, started by a Multiboot loader (bare.h), so that an emulated machine comes to the point in seconds: `make bochs`.
#include "bare.h"

#include <cpuid.h>

#include <functional>

#include "attention_tiles.h"
#include "lowbit/half.h"
#include "lowbit/linear.h"
#include "lowbit/tiles.h"
#include "random.h"

namespace lowbit {

// A pool of one thread, and the tables of the tiers that are compared, in the place of threads.cpp and dispatch.cpp.
struct ThreadPool::State {};
ThreadPool::ThreadPool(int) : size_(1) {}
ThreadPool::~ThreadPool() = default;
void ThreadPool::run(const std::function<void(Team&)>& job) {
    Team team(this, 0, 1);
    job(team);
}
void Team::barrier() {}
Team::Range Team::slice(int64_t n, int64_t) const { return {0, n}; }

const KernelTable& kernel_table(Tier) {  // asked for the formats that have int8 compute
    static KernelTable table;
    table.linear = scalar::linear_kernels();
    return table;
}

}  // namespace lowbit

namespace {

using namespace lowbit;

#include "amx/tile_ops-inl.h"

struct Shape {
    int group_size;
    int64_t rows, k, m;
};
constexpr Shape kShapes[] = {
    {32, 16, 32, 16}, {64, 33, 100, 17}, {128, 47, 512, 31}, {256, 64, 1030, 32}, {0, 70, 1300, 43}, {64, 1, 520, 33},
    {32, 40, 1600, 48}, {0, 17, 96, 16}, {64, 40, 330, 7}, {64, 20, 600, 530},
};

constexpr int64_t kFloats = 1 << 20, kBytes = 4 << 20;
alignas(64) uint8_t weights[kBytes], scratch[kBytes];
alignas(64) float x[kFloats], tiles[kFloats], other[kFloats];

// Any bytes are codes, those of bf16 but for what is not finite; scales and minima are fp16.
void fill_weights(const Format& f, const Layout& l, Random& random) {
    for (int64_t i = 0; i < l.bytes; i++) weights[i] = static_cast<uint8_t>(random.bits());
    if (f.id == FormatId::bf16)
        for (int64_t i = 0; i < l.bytes; i += 2) {
            const uint16_t half = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, random.value()) >> 16);
            __builtin_memcpy(weights + i, &half, 2);
        }
    if (f.codes == Codes::kFloat) return;
    const int64_t lines = f.has_min ? 2 : 1;
    for (int64_t tile = 1; tile <= l.panels * l.tiles; tile++)
        for (int64_t i = lines * kLine; i > 0; i -= 2) {
            const uint16_t half = float_to_half(random.value());
            __builtin_memcpy(weights + tile * l.tile_bytes - i, &half, 2);
        }
}

// Bochs 3.0 and 3.1 multiply the bytes of tdpbssd as unsigned. There only operands that are not negative can be compared.
bool tiles_know_signs() {
    alignas(64) static int8_t a[16 * 64], b[16 * 64];
    alignas(64) static int32_t sums[16 * 16];
    a[0] = -1, b[0] = 1;
    tile_configure(&kWholeTiles);
    tile_zero<0>();
    tile_load<1>(a, 64);
    tile_load<2>(b, 64);
    tile_multiply<0, 1, 2>();
    tile_store<0>(sums, 64);
    tile_release();
    return sums[0] == -1;
}

// Debian's build of Bochs 3.1 does not: 1000000007000 / 1000 gave 3 there, and so would every size that is divided.
bool divides() {
    volatile int64_t a = 1000000007000, b = 1000;
    return a / b == 1000000007;
}

// Changes codes so that the integers they stand for are not negative (formats.h has the planes).
void without_negatives(const Format& f, const Layout& l) {
    if (f.has_min) return;
    const int64_t atoms = l.tile_k() / kAtomK, codes_bytes = atoms * l.atom_bytes;
    for (int64_t i = 0; i < l.bytes; i++) {
        const int64_t in_tile = i % l.tile_bytes;
        if (in_tile >= codes_bytes) continue;
        if (f.id == FormatId::fp4) weights[i] &= 0x77;  // its top bit is the sign
        else if (f.bits == 8) weights[i] |= 0x80;
        else if (f.bits == 4) weights[i] |= 0x88;
        else if (in_tile % l.atom_bytes >= l.atom_bytes - kLine) weights[i] = 0xff;  // the plane of the top bit comes last
    }
}

// The avx512 tier with the tiles of another.
KernelTable avx512_and(const LinearKernels& tiles) {
    KernelTable table{};
    table.linear = avx512::linear_kernels();
    table.vector = avx512::vector_kernels();
    overlay(table.linear, tiles);
    return table;
}

// y [m][panels * 16] of the kernels.
void product(const KernelTable& kernels, const PackedView& w, Compute compute, int64_t m, float* y) {
    ThreadPool pool(1);
    const int64_t padded = w.layout.k_padded;
    LinearInput input = linear_input(x, padded, m, w.layout.k, padded, compute, Rounding::of(*w.format, compute), scratch);
    auto job = [&](Team& team) {
        prepare_input(team, kernels, input);
        linear(team, kernels, w, nullptr, input, y, w.layout.panels * kPanelRows);
    };
    pool.run(std::ref(job));
}

bool equal(const Format& f, const Shape& shape, Compute compute, const KernelTable& mine, const KernelTable& theirs, bool negatives,
           Random& random) {
    PackedView w;
    w.format = &f;
    w.layout = layout_of(f, shape.rows, shape.k, shape.group_size);
    w.data = weights;
    const int64_t padded = w.layout.k_padded, results = shape.m * w.layout.panels * kPanelRows;
    if (w.layout.bytes > kBytes || shape.m * padded > kFloats || results > kFloats ||
        static_cast<int64_t>(linear_input_bytes(shape.m, padded, Rounding::of(f, compute))) > kBytes)
        return false;
    fill_weights(f, w.layout, random);
    if (!negatives) without_negatives(f, w.layout);
    for (int64_t row = 0; row < shape.m; row++)
        for (int64_t i = 0; i < padded; i++) {
            const float value = random.value() * random.value();
            x[row * padded + i] = i >= shape.k ? 0 : negatives || value > 0 ? value : -value;
        }
    for (int64_t i = 0; i < results; i++) tiles[i] = 1, other[i] = 2;
    product(mine, w, compute, shape.m, tiles);
    product(theirs, w, compute, shape.m, other);
    return __builtin_memcmp(tiles, other, static_cast<size_t>(results) * sizeof(float)) == 0;
}

// All formats that the compute type rounds activations for, and all shapes. Returns true if all products are equal.
bool compare(Compute compute, const KernelTable& mine, const KernelTable& theirs, bool negatives, Random& random) {
    int products = 0, wrong = 0;
    for (const Format& f : kFormats) {
        if (compute == Compute::int8 ? !has_int8_compute(f) : !mine.linear.bf16[static_cast<int>(f.id)]) continue;
        for (const Shape& shape : kShapes) {
            products++;
            if (equal(f, shape, compute, mine, theirs, negatives, random)) continue;
            wrong++;
            print(f.name), print(" differs: group "), print(shape.group_size), print(", "), print(shape.rows);
            print(" x "), print(shape.k), print(", rows "), print(shape.m), print("\n");
        }
        print(f.name), print(" done\n");
    }
    print(products - wrong), print(" of "), print(products), print(compute == Compute::int8 ? " int8" : " bf16");
    print(" products in tiles are equal bit for bit\n");
    return wrong == 0;
}

}  // namespace

// Returns true if all products are equal.
bool check() {
    uint32_t a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    if (!(d >> 24 & 1) || !(d >> 25 & 1)) {
        print("this CPU has no AMX-INT8\n");
        return false;
    }
    if (!divides()) {
        print("this machine divides 64-bit integers wrongly, as an emulator may: nothing here would mean anything\n");
        return false;
    }
    const bool negatives = tiles_know_signs();
    if (!negatives) print("tdpbssd multiplies unsigned bytes here, a fault of the emulator: no negative operands in what follows\n");
    const Compared attention = compare_attention(negatives);
    print(attention.equal), print(" of "), print(attention.all), print(" products of attention in tiles equal those of avx512 bit for bit\n");
    if (attention.equal != attention.all) return false;
    Random random;
    const KernelTable avx512 = avx512_and({}), tiles_int8 = avx512_and(amx::linear_kernels());
    if (!compare(Compute::int8, tiles_int8, avx512, negatives, random)) return false;
    if (!(d >> 22 & 1)) {
        print("this CPU has no AMX-BF16\n");
        return false;
    }
    const KernelTable tiles_bf16 = avx512_and(amx::bf16_kernels()), model = avx512_and(amx_model::bf16_kernels());
    return compare(Compute::bf16, tiles_bf16, model, true, random);
}
