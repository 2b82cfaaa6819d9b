// Anonymous zeroed memory in huge pages where the system has them. Pages cost nothing until they are touched.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lowbit {

class Reservation {
public:
    Reservation() = default;
    explicit Reservation(size_t bytes);  // throws std::bad_alloc
    ~Reservation();
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;

    uint8_t* data() const { return data_; }  // 4096-byte aligned, 2 MiB aligned for large ones
    size_t bytes() const { return bytes_; }

private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace lowbit
