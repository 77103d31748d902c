// What the machine does when: every cycle's events are counted, and of one run every mark is written to a file.

#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

#include "job.h"
#include "ports.h"

// A record of the file: see RECORD in sim/rtl.py.
struct Record {
    uint64_t cycle;
    uint32_t kind, value;
};

enum : uint32_t {
    // Kinds below are bits of trace_marks.
    RECORD_RING = 64,         // words in the weight ring
    RECORD_CAUSES = 128,      // + event, or + COUNTERS + stage for idle: cycles from the last retirement to before this one
    RECORD_TILE_LOADS = 256,  // + event of the loader, or its idle: of those in which the array waited for a tile
};

constexpr uint64_t RING_PERIOD = 64;  // cycles between two looks at the ring

class Timeline {
public:
    std::vector<uint64_t> idle;     // cycles without an event, per stage, of the run
    bool overlap = false;           // a stage had two events in a cycle
    explicit Timeline(const std::string& path) : file(path.empty() ? nullptr : fopen(path.c_str(), "wb")) {
        if (!path.empty() && file == nullptr) fail("cannot write " + path);
    }
    ~Timeline() { stop(); }

    // A run begins: all stages are idle in the cycle that accepts the start.
    void begin() {
        idle.assign(STAGES, 1);
        causes.assign(COUNTERS + STAGES, 0);
        tile_loads.assign(COUNTERS + STAGES, 0);
        for (int stage = 0; stage < STAGES; stage++) causes[COUNTERS + stage] = 1;
        last_ring = 0;
    }

    void observe(uint64_t cycle, uint64_t events, uint64_t marks, uint32_t ring) {
        uint32_t of_load = 0;
        for (int stage = 0; stage < STAGES; stage++) {
            const uint64_t mine = events & STAGE_MASKS[stage];
            const uint32_t cause = mine ? uint32_t(__builtin_ctzll(mine)) : uint32_t(COUNTERS + stage);
            overlap |= (mine & (mine - 1)) != 0;
            idle[size_t(stage)] += mine == 0;
            causes[cause]++;
            if (stage == STAGE_LOAD) of_load = cause;
        }
        if (events >> EVENT_MAC_TILE & 1) tile_loads[of_load]++;
        if (file == nullptr) return;
        for (uint64_t left = marks; left; left &= left - 1) put(cycle, uint32_t(__builtin_ctzll(left)), 0);
        if (cycle % RING_PERIOD == 0 && ring != last_ring) put(cycle, RECORD_RING, last_ring = ring);
    }

    // The causes since the last call; `cycle` is not among them.
    void flush(uint64_t cycle) {
        if (file == nullptr) return;
        for (uint32_t i = 0; i < causes.size(); i++) {
            if (causes[i]) put(cycle, RECORD_CAUSES + i, causes[i]);
            if (tile_loads[i]) put(cycle, RECORD_TILE_LOADS + i, tile_loads[i]);
            causes[i] = tile_loads[i] = 0;
        }
    }

    // Only the first run is written.
    void stop() {
        if (file) fclose(file);
        file = nullptr;
    }

private:
    FILE* file;
    uint32_t last_ring = 0;
    std::vector<uint32_t> causes, tile_loads;

    void put(uint64_t cycle, uint32_t kind, uint32_t value) {
        const Record record{cycle, kind, value};
        if (fwrite(&record, sizeof record, 1, file) != 1) fail("cannot write the timeline");
    }
};
