// The two functions of zlib that Verilator's FST writer calls, so that waveforms need no zlib to be installed: they
// write valid zlib streams of stored blocks. Found before the system's header when a model is built with
// waveforms.

#pragma once

#include <cstdint>
#include <cstring>

typedef unsigned char Bytef;
typedef unsigned long uLong;
typedef unsigned long uLongf;
enum { Z_OK = 0, Z_BUF_ERROR = -5 };

inline uLong compressBound(uLong bytes) { return bytes + 5 * (bytes / 65535 + 1) + 6; }

inline int compress2(Bytef* target, uLongf* target_bytes, const Bytef* source, uLong bytes, int) {
    if (*target_bytes < compressBound(bytes)) return Z_BUF_ERROR;
    Bytef* out = target;
    *out++ = 0x78;
    *out++ = 0x01;
    uLong left = bytes;
    const Bytef* in = source;
    do {
        const uint32_t block = left < 65535 ? uint32_t(left) : 65535;
        *out++ = block == left;
        *out++ = Bytef(block);
        *out++ = Bytef(block >> 8);
        *out++ = Bytef(~block);
        *out++ = Bytef(~block >> 8);
        memcpy(out, in, block);
        out += block;
        in += block;
        left -= block;
    } while (left > 0);
    uint32_t a = 1, b = 0;
    for (uLong i = 0; i < bytes; i++) {
        a = (a + source[i]) % 65521;
        b = (b + a) % 65521;
    }
    for (const uint32_t byte : {b >> 8, b, a >> 8, a}) *out++ = Bytef(byte);
    *target_bytes = uLongf(out - target);
    return Z_OK;
}
