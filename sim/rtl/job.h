// What the harness is asked to do: a text file of `key value...` lines, written by sim/rtl.py.

#pragma once

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "dram.h"

enum Memory { ACTIVATION, OPERAND, QUEUE };

// Words of a memory that are to be copied out when the instruction that retires as number `retired` (from 0) does.
struct Watch {
    uint64_t retired;
    Memory memory;
    size_t first, end;
};

struct Task {
    uint64_t entry, instructions;  // byte offset in the image; length
};

struct Job {
    std::string image, inputs, outputs, snapshots, memories, trace, timeline;  // files
    uint64_t input_bytes = 0, output_bytes = 0, count = 1;           // of one input; how many inputs
    std::vector<Task> tasks;                                         // input i is for task i modulo their number
    uint64_t watchdog = 200000, max_cycles = UINT64_MAX;
    int output_fill = 0;
    bool soft_reset = true;  // between inputs
    DramParameters dram;
    std::vector<Watch> watches;  // in the order of `retired`
    std::vector<Counted> regions;
};

[[noreturn]] inline void fail(const std::string& what) {
    fprintf(stderr, "%s\n", what.c_str());
    exit(2);
}

inline Job read_job(const char* path) {
    std::ifstream file(path);
    if (!file) fail(std::string("cannot read ") + path);
    Job job;
    std::string line, key, memory;
    while (std::getline(file, line)) {
        std::istringstream in(line);
        in >> key;
        auto text = [&] { std::string value; std::getline(in >> std::ws, value); return value; };
        if (key == "image") job.image = text();
        else if (key == "inputs") job.inputs = text();
        else if (key == "outputs") job.outputs = text();
        else if (key == "snapshots") job.snapshots = text();
        else if (key == "memories") job.memories = text();
        else if (key == "trace") job.trace = text();
        else if (key == "timeline") job.timeline = text();
        else if (key == "input_bytes") in >> job.input_bytes;
        else if (key == "output_bytes") in >> job.output_bytes;
        else if (key == "output_fill") in >> job.output_fill;
        else if (key == "count") in >> job.count;
        else if (key == "task") {
            Task task{};
            in >> task.entry >> task.instructions;
            job.tasks.push_back(task);
        }
        else if (key == "watchdog") in >> job.watchdog;
        else if (key == "max_cycles") in >> job.max_cycles;
        else if (key == "soft_reset") in >> job.soft_reset;
        else if (key == "bytes_per_cycle") in >> job.dram.bytes_per_cycle;
        else if (key == "latency") in >> job.dram.latency;
        else if (key == "outstanding") in >> job.dram.outstanding;
        else if (key == "seed") in >> job.dram.seed;
        else if (key == "watch") {
            Watch watch{};
            in >> watch.retired >> memory >> watch.first >> watch.end;
            watch.memory = memory == "activation" ? ACTIVATION : memory == "queue" ? QUEUE : OPERAND;
            job.watches.push_back(watch);
        } else if (key == "region") {
            Counted region{};
            in >> region.first >> region.end;
            job.regions.push_back(region);
        } else fail("unknown key in the job: " + key);
        if (in.fail()) fail("cannot read in the job: " + line);
    }
    if (job.tasks.empty()) fail("the job has no task");
    return job;
}

inline std::vector<uint8_t> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) fail("cannot read " + path);
    std::vector<uint8_t> data(size_t(file.tellg()));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(data.data()), std::streamsize(data.size()));
    if (!file) fail("cannot read " + path);
    return data;
}
