// A program without an operating system: a Multiboot loader (isolinux' mboot.c32) puts it at 1 MB in 32-bit mode; the code here
// goes on to 64 bits, switches on all vector and tile state, calls check() and switches the (Bochs) machine off. Included once.
#pragma once
#include <cstddef>
#include <cstdint>

// The Multiboot header (specification 0.6.96) with the addresses of a flat image, first in the file: see bare.ld.
// Then: the first GB mapped to itself in one page, long mode, XCR0 with x87, SSE, AVX, AVX-512 and tiles.
__asm__(R"(
    .section .multiboot, "ax"
    .align 4
header:
    .long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
    .long header, image_start, image_end, bss_end, entry32
    .code32
    .globl entry32
entry32:
    mov $stack_top, %esp
    lea pages + 4096, %eax
    or $3, %eax
    mov %eax, pages
    movl $0x83, pages + 4096
    mov $pages, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x40620, %eax           # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $0xc0000080, %ecx       # EFER
    rdmsr
    or $0x100, %eax             # LME
    wrmsr
    mov %cr0, %eax
    and $~0xc, %eax             # no EM, TS
    or $0x80000023, %eax        # PG, NE, MP, PE
    mov %eax, %cr0
    lgdt descriptors_at
    ljmp $8, $entry64
    .code64
entry64:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    fninit
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0x600e7, %eax
    xsetbv
    call start
    .align 8
descriptors:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
descriptors_at:
    .short 23
    .long descriptors
    .section .bss
    .align 4096
pages:
    .skip 8192
    .skip 1 << 20
stack_top:
    .text
)");

static void out(uint16_t port, uint8_t byte) { __asm__ volatile("outb %0, %1" ::"a"(byte), "Nd"(port)); }
static uint8_t in(uint16_t port) {
    uint8_t byte;
    __asm__ volatile("inb %1, %0" : "=a"(byte) : "Nd"(port));
    return byte;
}

// To the first serial port.
static void print(const char* text) {
    for (; *text; text++) {
        while (!(in(0x3fd) & 0x20)) {}
        out(0x3f8, static_cast<uint8_t>(*text));
    }
}
static void print(int64_t n) {
    char text[24], *at = text + 23;
    *at = 0;
    do *--at = static_cast<char>('0' + n % 10);
    while (n /= 10);
    print(at);
}

// What the compiler calls without being asked.
extern "C" {
void* memset(void* to, int byte, size_t n) {
    for (size_t i = 0; i < n; i++) static_cast<volatile uint8_t*>(to)[i] = static_cast<uint8_t>(byte);
    return to;
}
void* memcpy(void* to, const void* from, size_t n) {
    for (size_t i = 0; i < n; i++) static_cast<volatile uint8_t*>(to)[i] = static_cast<const uint8_t*>(from)[i];
    return to;
}
int memcmp(const void* a, const void* b, size_t n) {
    const auto *p = static_cast<const volatile uint8_t*>(a), *q = static_cast<const volatile uint8_t*>(b);
    for (size_t i = 0; i < n; i++)
        if (p[i] != q[i]) return p[i] < q[i] ? -1 : 1;
    return 0;
}
}
void operator delete(void*) noexcept {}
void operator delete(void*, size_t) noexcept {}
namespace std {
void __throw_bad_function_call() {
    for (;;) {}
}
}  // namespace std

// Thread-local variables lie below the address that FS holds, which stands there itself.
static void allow_thread_locals() {
    alignas(64) static uint8_t memory[1 << 15];
    const auto end = reinterpret_cast<uint64_t>(memory + sizeof memory - 64);
    *reinterpret_cast<uint64_t*>(end) = end;
    __asm__ volatile("wrmsr" ::"c"(0xc0000100), "a"(static_cast<uint32_t>(end)), "d"(static_cast<uint32_t>(end >> 32)));  // FS_BASE
}

bool check();

extern "C" [[noreturn]] void start() {
    out(0x3fb, 3);  // 8 bits
    allow_thread_locals();
    print(check() ? "PASSED\n" : "FAILED\n");
    while (!(in(0x3fd) & 0x40)) {}  // until the last byte has left
    for (const char* c = "Shutdown"; *c; c++) out(0x8900, static_cast<uint8_t>(*c));  // Bochs ends at this word
    for (;;) __asm__ volatile("hlt");
}
