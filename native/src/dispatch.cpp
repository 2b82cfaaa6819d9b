// Merges the tiers' kernel tables bottom-up: a null entry means "use the tier below". The lists below are the registry.
#include <algorithm>
#include <array>

#include "lowbit/code_tiles.h"
#include "lowbit/kernels.h"

namespace lowbit {
namespace {

struct Registered {
    Tier tier;
    LinearKernels (*linear)();
    VectorKernels (*vector)();            // null: none of its own
    QueryLaneKernels (*query_lanes)();    // null: none of its own
    const CodeTileKernels* (*code_tiles)() = nullptr;
};
constexpr Registered kTiers[] = {
    {Tier::scalar, scalar::linear_kernels, scalar::vector_kernels, scalar::query_lane_kernels},
    {Tier::avx2, avx2::linear_kernels, avx2::vector_kernels, avx2::query_lane_kernels},
    {Tier::avx512, avx512::linear_kernels, avx512::vector_kernels, avx512::query_lane_kernels},
    {Tier::amx, amx::linear_kernels, nullptr, nullptr, amx::code_tile_kernels},
};

// Kernels of instructions that not every CPU of a tier has.
struct Extra {
    Tier tier;
    bool (*usable)(const CpuFeatures&);
    LinearKernels (*linear)();
};
constexpr Extra kExtras[] = {
    // On Intel's cores a vdpbf16ps takes no fewer cycles per product than an fp32 FMA does (a Xeon with AMX: half of its rate), so fp32
    // kernels multiply the rounded activations there.
    {Tier::avx512, [](const CpuFeatures& f) { return f.avx512_bf16 && f.vendor == "AuthenticAMD"; }, avx512::bf16_kernels},
    {Tier::amx, [](const CpuFeatures& f) { return f.amx_bf16; }, amx::bf16_kernels},
};

std::array<KernelTable, 4> merge() {
    std::array<KernelTable, 4> merged{};
    KernelTable table{};
    for (int tier = 0; tier < 4; tier++) {
        for (const Registered& r : kTiers) {
            if (static_cast<int>(r.tier) != tier || !tier_available(r.tier)) continue;
            overlay(table.linear, r.linear());
            if (r.vector) overlay(table.vector, r.vector());
            if (r.query_lanes) table.query_lanes = r.query_lanes();
            if (r.code_tiles) table.code_tiles = r.code_tiles();
        }
        for (const Extra& e : kExtras)
            if (static_cast<int>(e.tier) == tier && tier_available(e.tier) && e.usable(cpu_features())) overlay(table.linear, e.linear());
        table.tier = static_cast<Tier>(tier);
        merged[tier] = table;
    }
    return merged;
}

}  // namespace

const KernelTable& kernel_table(Tier tier) {
    static const std::array<KernelTable, 4> tables = merge();
    return tables[static_cast<int>(tier)];
}

const CodeAttentionKernels& code_attention_kernels(Tier tier) {
    static const CodeAttentionKernels tables[] = {scalar::code_attention_kernels(), tier_available(Tier::avx2) ? avx2::code_attention_kernels() : CodeAttentionKernels{},
                                                  tier_available(Tier::avx512) ? avx512::code_attention_kernels() : CodeAttentionKernels{}};
    return tables[std::min(static_cast<int>(tier), 2)];
}

}  // namespace lowbit
