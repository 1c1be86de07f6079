// Loops that do nothing but what is to be measured: reading memory, and multiplying in registers.
// Each does a short piece of work and says how much it was. Used by machine_speed.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hearth {

// Reads all of `bytes` (a multiple of 512) once; the sum keeps the reads from being dropped. By
// AVX-512, AVX2 or plain loads, as the CPU has.
uint64_t ReadOnce(std::span<const std::byte> bytes);

// Operations done (a multiplication and an addition are two). Call only what the CPU has.
uint64_t Float32FmaAvx512();
uint64_t Float32FmaAvx2();
uint64_t Int8VnniAvx512();  // vpdpbusd
uint64_t Int8VnniAvx2();    // vpdpbusd of AVX-VNNI
uint64_t Int8MaddAvx2();    // vpmaddubsw, vpmaddwd, vpaddd
uint64_t Int8Amx();         // tdpbssd

}  // namespace hearth
