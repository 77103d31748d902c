// The two functions of LZ4 that Verilator's FST writer calls, so that waveforms need no LZ4 to be installed: a small
// greedy compressor for the LZ4 block format. Found before the system's header when a model is built with waveforms.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

inline int LZ4_compressBound(int bytes) { return bytes + bytes / 255 + 16; }

namespace lz4 {

constexpr int MIN_MATCH = 4;
constexpr int LAST_LITERALS = 5;   // a block ends in at least so many literals ...
constexpr int MATCH_LIMIT = 12;    // ... and no match begins nearer to its end than this
constexpr int MAX_DISTANCE = 65535;
constexpr int HASH_BITS = 12;

inline uint32_t load(const char* at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

// The part of a length that does not fit the token's four bits.
inline char* put_length(char* out, int rest) {
    for (; rest >= 255; rest -= 255) *out++ = char(255);
    *out++ = char(rest);
    return out;
}

// One sequence: literals, then a match of `length` bytes `distance` back (none when the length is 0).
inline char* put_sequence(char* out, const char* literals, int count, int length, int distance) {
    const int more = length ? length - MIN_MATCH : 0;
    *out++ = char((count < 15 ? count : 15) << 4 | (more < 15 ? more : 15));
    if (count >= 15) out = put_length(out, count - 15);
    memcpy(out, literals, size_t(count));
    out += count;
    if (length) {
        *out++ = char(distance);
        *out++ = char(distance >> 8);
        if (more >= 15) out = put_length(out, more - 15);
    }
    return out;
}

}  // namespace lz4

inline int LZ4_compress_default(const char* source, char* target, int bytes, int capacity) {
    using namespace lz4;
    if (capacity < LZ4_compressBound(bytes)) return 0;
    char* out = target;
    int literals = 0;  // where those that are not yet written begin
    if (bytes > MATCH_LIMIT) {
        std::vector<int> seen(1u << HASH_BITS, -1);
        for (int at = 0; at <= bytes - MATCH_LIMIT;) {
            int& entry = seen[load(source + at) * 2654435761u >> (32 - HASH_BITS)];
            const int before = entry;
            entry = at;
            if (before < 0 || at - before > MAX_DISTANCE || load(source + before) != load(source + at)) {
                at++;
                continue;
            }
            int length = MIN_MATCH;
            while (at + length < bytes - LAST_LITERALS && source[before + length] == source[at + length]) length++;
            out = put_sequence(out, source + literals, at - literals, length, at - before);
            at += length;
            literals = at;
        }
    }
    return int(put_sequence(out, source + literals, bytes - literals, 0, 0) - target);
}
