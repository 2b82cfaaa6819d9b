// CPU features, tiers, the thread pool and the format table as Python sees them.
#include <atomic>

#include "bind.h"
#include "lowbit/kernels.h"
#include "lowbit/threads.h"

using namespace lowbit;

namespace {

// Runs `jobs` jobs of `phases` phases. In each phase every member adds one to a counter, and after the barrier every member
// must see the sum of all. Returns how often one did not (0 when barriers work).
int64_t exercise(ThreadPool& pool, int jobs, int phases) {
    std::atomic<int64_t> wrong{0};
    for (int j = 0; j < jobs; j++) {
        std::atomic<int64_t> arrived{0};
        pool.run([&](Team& team) {
            for (int p = 1; p <= phases; p++) {
                arrived.fetch_add(1, std::memory_order_relaxed);
                team.barrier();
                if (arrived.load(std::memory_order_relaxed) != static_cast<int64_t>(p) * team.size()) wrong++;
                team.barrier();
            }
        });
    }
    return wrong;
}

}  // namespace

void bind_runtime(nb::module_& m) {
    m.def("cpu_features", [] {
        const CpuFeatures& f = cpu_features();
        nb::dict d;
#define FEATURE(name) d[#name] = f.name
        FEATURE(vendor), FEATURE(brand), FEATURE(avx2), FEATURE(fma), FEATURE(f16c), FEATURE(avx_vnni), FEATURE(avx512f),
            FEATURE(avx512bw), FEATURE(avx512vl), FEATURE(avx512dq), FEATURE(avx512vbmi), FEATURE(avx512_vnni),
            FEATURE(avx512_bf16), FEATURE(amx_tile), FEATURE(amx_int8), FEATURE(amx_bf16), FEATURE(l2_bytes);
#undef FEATURE
        return d;
    });
    m.def("tiers", [] {  // names of the tiers this process can run, lowest first
        std::vector<std::string> names;
        for (int t = 0; t < 4; t++)
            if (tier_available(static_cast<Tier>(t))) names.push_back(kTierNames[t]);
        return names;
    });
    m.def("format_table", [] {
        nb::list rows;
        for (const Format& f : kFormats) {
            nb::dict d;
            d["name"] = f.name;
            d["id"] = static_cast<int>(f.id);
            d["bits"] = f.bits;
            d["codes"] = static_cast<int>(f.codes);
            d["offset"] = f.offset;
            d["has_min"] = f.has_min;
            rows.append(d);
        }
        return rows;
    });
    m.def(
        "layout",
        [](int format, int64_t rows, int64_t k, int group_size) {
            const Format* f = find_format(format);
            if (!f) throw std::invalid_argument("unknown format id " + std::to_string(format));
            if (rows < 0 || k < 0 || group_size < 0 || group_size % kAtomK)
                throw std::invalid_argument("group_size must be 0 (per row) or a multiple of 32");
            const Layout l = layout_of(*f, rows, k, group_size);
            nb::dict d;
            d["group_size"] = l.group_size;
            d["groups_per_tile"] = l.groups_per_tile;
            d["panels"] = l.panels;
            d["tiles"] = l.tiles;
            d["k_padded"] = l.k_padded;
            d["tile_bytes"] = l.tile_bytes;
            d["panel_bytes"] = l.panel_bytes;
            d["bytes"] = l.bytes;
            return d;
        },
        nb::arg("format"), nb::arg("rows"), nb::arg("k"), nb::arg("group_size"));

    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("size", &ThreadPool::size)
        .def("exercise", &exercise, nb::arg("jobs"), nb::arg("phases"), nb::call_guard<nb::gil_scoped_release>(),
             "For tests: runs jobs with barriers and returns how many checks failed.");
}
