// The DRAM behind all AXI ports: one shared bandwidth, one latency, and optional random stalls.
//
// Every port answers in order. A read burst that is accepted in cycle t shows its first beat in cycle t + latency
// or later; all ports together move at most `bytes_per_cycle` on average. Addresses outside the regions, and
// writes outside the output buffer, answer DECERR. Each master is held to the protocol: what breaks it is kept
// in `violations`.

#pragma once

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "ports.h"

// xorshift64*: small, and the same everywhere.
class Random {
public:
    explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {
        if (state == 0) state = 1;
    }
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return uint32_t((state * 0x2545F4914F6CDD1Du) >> 32);
    }
    uint32_t below(uint32_t n) { return next() % n; }

private:
    uint64_t state;
};

// When a channel stalls: for stretches of random length, with a probability that changes from one to the next.
class Stall {
public:
    Stall(uint64_t seed, bool enabled) : random(seed), enabled(enabled) {}
    bool now() {
        if (!enabled) return false;
        if (left-- == 0) {
            static const uint32_t levels[] = {0, 0, 16, 64, 128, 224};  // of 256
            left = 16 + random.below(512);
            level = levels[random.below(6)];
        }
        return random.below(256) < level;
    }

private:
    Random random;
    bool enabled;
    uint32_t left = 0, level = 0;
};

// An output of the model of any width, read as a number.
struct Wire {
    const void* data;
    size_t bytes;
    uint64_t get() const {
        uint64_t value = 0;
        memcpy(&value, data, bytes < 8 ? bytes : 8);
        return value;
    }
};

struct AddressPins {
    const uint8_t* valid;
    uint8_t* ready;
    Wire addr;
    const uint8_t *len, *size, *burst;
};

struct ReadPins {
    const char* name;
    AddressPins ar;
    uint8_t* data;
    uint8_t *resp, *last, *valid;
    const uint8_t* ready;
};

struct WritePins {
    const char* name;
    AddressPins aw;
    const uint8_t* data;
    Wire strb;
    const uint8_t *last, *valid;
    uint8_t* ready;
    uint8_t *resp, *bvalid;
    const uint8_t* bready;
};

enum Kind { PROGRAM, IMAGE, INPUT, OUTPUT, KINDS };
static const char* const KIND_NAMES[KINDS] = {"program", "image", "input", "output"};

struct Region {
    uint64_t base = 0;
    uint64_t bytes = 0;          // what the machine is told
    std::vector<uint8_t> data;   // padded to whole bus words
    Kind kind = IMAGE;

    void allocate(uint64_t at, uint64_t size, Kind k) {
        base = at;
        bytes = size;
        kind = k;
        data.assign((size + AXI_BYTES - 1) / AXI_BYTES * AXI_BYTES, 0);
    }
    bool holds(uint64_t addr) const { return addr >= base && addr - base + AXI_BYTES <= data.size(); }
};

// Part of the image, from byte `first` to before byte `end`, of which is counted how much is read.
struct Counted {
    uint64_t first = 0, end = 0, bytes = 0;
};

struct DramParameters {
    double bytes_per_cycle = 16;
    uint32_t latency = 60;
    uint32_t outstanding = 16;  // bursts per port
    uint64_t seed = 0;          // of the random stalls; 0: none
};

class Violations {
public:
    std::vector<std::string> list;
    void add(const char* format, ...) __attribute__((format(printf, 2, 3))) {
        if (list.size() >= 20) return;
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        list.emplace_back(text);
    }
};

// Holds a master to `valid` and its payload staying until `ready`.
class Stable {
public:
    void check(bool valid, bool ready, uint64_t payload, const char* port, const char* channel, uint64_t cycle,
               Violations& violations) {
        if (waiting && !valid) violations.add("%s: %s fell before it was accepted, cycle %" PRIu64, port, channel, cycle);
        if (waiting && valid && payload != held)
            violations.add("%s: %s's payload changed while it waited, cycle %" PRIu64, port, channel, cycle);
        waiting = valid && !ready;
        held = payload;
    }

private:
    bool waiting = false;
    uint64_t held = 0;
};

class Dram {
public:
    Region image, input, output;
    std::map<uint64_t, Region> buffers;  // further ones by their address, which a driver reads and writes
    uint64_t fault_begin = 0, fault_end = 0;  // addresses that answer SLVERR
    uint64_t program_begin = 0, program_end = 0;  // addresses of the running program's instructions
    Violations violations;
    uint64_t read_bytes[KINDS] = {}, written_bytes = 0;
    std::vector<Counted> regions;  // do not overlap, in the order of their bytes
    uint64_t transfers = 0;  // handshakes on any port: progress

    Dram(const DramParameters& parameters, std::vector<ReadPins> reads, WritePins write)
        : parameters(parameters),
          write(write, parameters),
          gain(int64_t(parameters.bytes_per_cycle * UNIT)),
          limit(int64_t(AXI_BYTES) * UNIT * int64_t(reads.size() + 1) + gain) {
        for (size_t i = 0; i < reads.size(); i++) this->reads.emplace_back(reads[i], parameters, 16 + 4 * i);
    }

    void clear_counts() {
        memset(read_bytes, 0, sizeof read_bytes);
        written_bytes = 0;
        for (Counted& region : regions) region.bytes = 0;
    }

    // What a driver has put at an address, or null if that is not all in one buffer.
    uint8_t* span(uint64_t addr, uint64_t size) {
        const auto after = buffers.upper_bound(addr);
        if (after == buffers.begin()) return nullptr;
        Region& region = std::prev(after)->second;
        const uint64_t offset = addr - region.base;
        return offset <= region.bytes && size <= region.bytes - offset ? &region.data[offset] : nullptr;
    }

    bool writes_outstanding() const { return !write.bursts.empty() || !write.responses.empty() || write.bvalid; }

    // Before the model is evaluated: what the memory shows in this cycle.
    void drive(uint64_t cycle) {
        tokens = tokens + gain < limit ? tokens + gain : limit;
        const size_t n = reads.size();
        const size_t begin = first;  // the port after the one that was served last
        for (size_t i = 0; i < n; i++) {
            const size_t port = begin + i < n ? begin + i : begin + i - n;
            if (drive_read(reads[port], cycle)) first = port + 1 < n ? port + 1 : 0;
        }
        drive_write(cycle);
    }

    // After it: what is transferred.
    void sample(uint64_t cycle) {
        for (ReadPort& port : reads) sample_read(port, cycle);
        sample_write(cycle);
    }

private:
    static constexpr int64_t UNIT = 1 << 20;

    struct Burst {
        uint64_t addr;
        uint32_t beats;
        uint64_t due;
        bool failed;
    };

    struct ReadPort {
        ReadPins pins;
        std::deque<Burst> bursts;
        Stall ar_stall, r_stall;
        Random jitter;
        Stable ar;
        bool valid = false;
        ReadPort(const ReadPins& pins, const DramParameters& p, uint64_t salt)
            : pins(pins), ar_stall(p.seed + salt, p.seed), r_stall(p.seed + salt + 1, p.seed), jitter(p.seed + salt + 2) {}
    };

    struct WritePort {
        WritePins pins;
        std::deque<Burst> bursts;
        std::deque<Burst> responses;
        Stall aw_stall, w_stall, b_stall;
        Stable aw, w;
        bool bvalid = false;
        WritePort(const WritePins& pins, const DramParameters& p)
            : pins(pins), aw_stall(p.seed + 5, p.seed), w_stall(p.seed + 6, p.seed), b_stall(p.seed + 7, p.seed) {}
    };

    DramParameters parameters;
    std::vector<ReadPort> reads;
    WritePort write;
    int64_t gain, limit, tokens = 0;
    size_t first = 0;

    const Region* find(uint64_t addr) const {
        for (const Region* region : {&image, &input, &output})
            if (region->holds(addr)) return region;
        const auto after = buffers.upper_bound(addr);
        if (after == buffers.begin()) return nullptr;
        const Region& region = std::prev(after)->second;
        return region.holds(addr) ? &region : nullptr;
    }

    // Where a byte is written to, or null.
    uint8_t* writable(uint64_t addr) {
        if (addr >= output.base && addr - output.base < output.bytes) return &output.data[addr - output.base];
        const auto after = buffers.upper_bound(addr);
        if (after == buffers.begin()) return nullptr;
        Region& region = std::prev(after)->second;
        return addr - region.base < region.bytes ? &region.data[addr - region.base] : nullptr;
    }

    bool faulty(uint64_t addr) const { return addr >= fault_begin && addr < fault_end; }

    void count(uint64_t offset) {
        const auto after = std::upper_bound(regions.begin(), regions.end(), offset,
                                            [](uint64_t at, const Counted& region) { return at < region.first; });
        if (after != regions.begin() && offset < std::prev(after)->end) std::prev(after)->bytes += AXI_BYTES;
    }

    bool take_tokens() {
        if (tokens < int64_t(AXI_BYTES) * UNIT) return false;
        tokens -= int64_t(AXI_BYTES) * UNIT;
        return true;
    }

    // Whether it shows a new beat.
    bool drive_read(ReadPort& port, uint64_t cycle) {
        const bool shown = port.valid;
        *port.pins.ar.ready = port.bursts.size() < parameters.outstanding && !port.ar_stall.now();
        if (!port.valid && !port.bursts.empty() && port.bursts.front().due <= cycle && !port.r_stall.now() && take_tokens()) {
            const Burst& burst = port.bursts.front();
            const Region* region = find(burst.addr);
            if (region == nullptr) {
                memset(port.pins.data, 0xEE, AXI_BYTES);
            } else {
                memcpy(port.pins.data, &region->data[burst.addr - region->base], AXI_BYTES);
                const bool program = burst.addr >= program_begin && burst.addr < program_end;
                read_bytes[program ? PROGRAM : region->kind] += AXI_BYTES;
                if (region == &image) count(burst.addr - image.base);
            }
            *port.pins.resp = region == nullptr ? 3 : faulty(burst.addr) ? 2 : 0;
            *port.pins.last = burst.beats == 1;
            port.valid = true;
        }
        *port.pins.valid = port.valid;
        return port.valid && !shown;
    }

    void sample_read(ReadPort& port, uint64_t cycle) {
        const AddressPins& ar = port.pins.ar;
        if (port.valid && *port.pins.ready) {
            Burst& burst = port.bursts.front();
            burst.addr += AXI_BYTES;
            if (--burst.beats == 0) port.bursts.pop_front();
            port.valid = false;
            transfers++;
        }
        if (*ar.valid && *ar.ready) {
            const uint32_t extra = parameters.seed ? port.jitter.below(2 * parameters.latency + 1) : 0;
            port.bursts.push_back(burst(ar, port.pins.name, cycle + parameters.latency + extra));
            transfers++;
        }
        port.ar.check(*ar.valid, *ar.ready, ar.addr.get() ^ uint64_t(*ar.len) << 48, port.pins.name, "ARVALID", cycle, violations);
    }

    Burst burst(const AddressPins& pins, const char* name, uint64_t due) {
        const uint64_t addr = pins.addr.get();
        const uint32_t beats = *pins.len + 1;
        if (1u << *pins.size != AXI_BYTES || *pins.burst != 1)
            violations.add("%s: burst at 0x%" PRIx64 " is not INCR of whole bus words", name, addr);
        if (addr % AXI_BYTES) violations.add("%s: burst at 0x%" PRIx64 " is not aligned", name, addr);
        if (addr / 4096 != (addr + beats * AXI_BYTES - 1) / 4096)
            violations.add("%s: burst of %u beats at 0x%" PRIx64 " crosses a 4 KB boundary", name, beats, addr);
        return Burst{addr, beats, due, false};
    }

    void drive_write(uint64_t cycle) {
        WritePins& pins = write.pins;
        *pins.aw.ready = write.bursts.size() + write.responses.size() < parameters.outstanding && !write.aw_stall.now();
        *pins.ready = !write.bursts.empty() && tokens >= int64_t(AXI_BYTES) * UNIT && !write.w_stall.now();
        if (!write.bvalid && !write.responses.empty() && write.responses.front().due <= cycle && !write.b_stall.now()) {
            *pins.resp = write.responses.front().failed ? 3 : 0;
            write.bvalid = true;
        }
        *pins.bvalid = write.bvalid;
    }

    void sample_write(uint64_t cycle) {
        WritePins& pins = write.pins;
        if (write.bvalid && *pins.bready) {
            write.responses.pop_front();
            write.bvalid = false;
            transfers++;
        }
        if (*pins.valid && *pins.ready) {
            take_tokens();
            store(write.bursts.front());
            Burst& burst = write.bursts.front();
            burst.addr += AXI_BYTES;
            const bool end = --burst.beats == 0;
            if (end != bool(*pins.last)) violations.add("%s: WLAST is wrong at 0x%" PRIx64, pins.name, burst.addr);
            if (end) {
                burst.due = cycle + parameters.latency;
                write.responses.push_back(burst);
                write.bursts.pop_front();
            }
            transfers++;
        }
        if (*pins.aw.valid && *pins.aw.ready) {
            write.bursts.push_back(burst(pins.aw, pins.name, 0));
            transfers++;
        }
        write.aw.check(*pins.aw.valid, *pins.aw.ready, pins.aw.addr.get() ^ uint64_t(*pins.aw.len) << 48, pins.name, "AWVALID",
                       cycle, violations);
        uint64_t payload = pins.strb.get();
        if (*pins.valid) {
            uint64_t word;
            for (int i = 0; i + 8 <= AXI_BYTES; i += 8) {
                memcpy(&word, pins.data + i, 8);
                payload = payload * 0x9E3779B97F4A7C15u + word;
            }
        }
        write.w.check(*pins.valid, *pins.ready, payload, pins.name, "WVALID", cycle, violations);
    }

    void store(Burst& burst) {
        const WritePins& pins = write.pins;
        const uint64_t strobes = pins.strb.get();
        for (int i = 0; i < AXI_BYTES; i++) {
            if (!(strobes >> i & 1)) continue;
            const uint64_t addr = burst.addr + i;
            uint8_t* const byte = writable(addr);
            if (byte == nullptr) {
                if (!burst.failed)
                    violations.add("%s: writes to 0x%" PRIx64 ", outside the output buffer", pins.name, addr);
                burst.failed = true;
                continue;
            }
            burst.failed |= faulty(addr);
            *byte = pins.data[i];
        }
        written_bytes += AXI_BYTES;
    }
};
