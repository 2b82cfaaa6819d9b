#include "lowbit/memory.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace lowbit {
namespace {
constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
}

Reservation::Reservation(size_t bytes) {
    if (bytes == 0) return;
    if (bytes > (size_t{1} << 62)) throw std::bad_alloc();
    const size_t align = bytes >= kHugePage ? kHugePage : kPage;
    bytes = (bytes + kPage - 1) / kPage * kPage;
    const size_t mapped = bytes + align - kPage;  // mmap aligns to pages: map more, give both ends back
    void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    uint8_t* base = static_cast<uint8_t*>(p);
    const size_t head = (align - reinterpret_cast<uintptr_t>(base) % align) % align;
    if (head) munmap(base, head);
    if (mapped > head + bytes) munmap(base + head + bytes, mapped - head - bytes);
    data_ = base + head;
    bytes_ = bytes;
#ifdef MADV_HUGEPAGE
    if (align == kHugePage) madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: refused on systems without huge pages
#endif
}

Reservation::~Reservation() {
    if (data_) munmap(data_, bytes_);
}

Reservation::Reservation(Reservation&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace lowbit
