// The two functions of LZ4 that Verilator's FST writer calls, so that waveforms need no LZ4 to be installed: they
// write valid LZ4 blocks that hold literals only. Found before the system's header when a model is built with
// waveforms.

#pragma once

#include <cstring>

inline int LZ4_compressBound(int bytes) { return bytes + bytes / 255 + 16; }

inline int LZ4_compress_default(const char* source, char* target, int bytes, int capacity) {
    if (capacity < LZ4_compressBound(bytes)) return 0;
    char* out = target;
    *out++ = char((bytes < 15 ? bytes : 15) << 4);
    if (bytes >= 15) {
        int rest = bytes - 15;
        for (; rest >= 255; rest -= 255) *out++ = char(255);
        *out++ = char(rest);
    }
    memcpy(out, source, size_t(bytes));
    return int(out - target) + bytes;
}
