// Runs one job on the verilated machine, `moevit-rtl JOB`, or lets a driver do so, `moevit-rtl --serve JOB` (serve.h).
//
// For each input it sets the machine up over AXI4-Lite, starts it, waits for the interrupt and prints one JSON
// object on a line of standard output. Outputs, snapshots and memories go to the raw binary files that the job names.

#include "machine.h"
#include "serve.h"

static void print_list(const char* name, const std::vector<uint64_t>& values) {
    printf("\"%s\":[", name);
    for (size_t i = 0; i < values.size(); i++) printf(i ? ",%" PRIu64 : "%" PRIu64, values[i]);
    printf("],");
}

static void print(uint64_t index, const Outcome& outcome, const Machine& machine) {
    printf("{\"image\":%" PRIu64 ",\"hung\":%s,\"cycles\":%" PRIu64 ",", index, outcome.hung ? "true" : "false", outcome.cycles);
    printf("\"status\":%u,\"error\":%u,\"error_instruction\":%u,\"retired\":%u,\"cycles_register\":%u,", outcome.status,
           outcome.error, outcome.error_instruction, outcome.retired, outcome.cycles_register);
    print_list("counters", {outcome.counters.begin(), outcome.counters.end()});
    print_list("idle", machine.timeline.idle);
    print_list("retire_cycles", machine.retire_cycles);
    for (int kind = 0; kind < KINDS; kind++)
        printf("\"read_%s\":%" PRIu64 ",", KIND_NAMES[kind], machine.dram.read_bytes[kind]);
    std::vector<uint64_t> regions;
    for (const Counted& region : machine.dram.regions) regions.push_back(region.bytes);
    print_list("regions", regions);
    printf("\"written\":%" PRIu64 ",\"snapshot_bytes\":%zu,\"violations\":[", machine.dram.written_bytes, machine.snapshots.size());
    const std::vector<std::string>& list = machine.dram.violations.list;
    for (size_t i = 0; i < list.size(); i++) printf("%s\"%s\"", i ? "," : "", list[i].c_str());
    printf("],\"total_cycles\":%" PRIu64 "}\n", machine.total_cycles());
    fflush(stdout);
}

// Files that results are appended to, image after image.
class Sink {
public:
    explicit Sink(const std::string& path) : file(path.empty() ? nullptr : fopen(path.c_str(), "wb")) {
        if (!path.empty() && file == nullptr) fail("cannot write " + path);
    }
    ~Sink() { if (file) fclose(file); }
    void write(const uint8_t* data, size_t bytes) {
        if (file && fwrite(data, 1, bytes, file) != bytes) fail("cannot write the results");
    }
    FILE* file;
};

int main(int argc, char** argv) {
    if (argc == 3 && std::string(argv[1]) == "--serve") {
        const Job job = read_job(argv[2]);
        Machine machine(job);
        serve(machine);
        return 0;
    }
    if (argc != 2) fail("usage: moevit-rtl [--serve] JOB");
    const Job job = read_job(argv[1]);
    Machine machine(job);
    Dram& dram = machine.dram;

    // Above 4 GB where the bus reaches, so that the upper halves of the addresses count too. The buffers do not begin
    // at a page, so that bursts have boundaries to stop at.
    const bool wide = AXI_ADDRESS_WIDTH > 34;
    const uint64_t image_base = wide ? 0x140000000u : 0x40000000u;
    const uint64_t input_base = (wide ? 0x280000000u : 0x80000000u) + 0x7C0;
    const uint64_t output_base = input_base + 0x40000000u + 0x300;
    const std::vector<uint8_t> image = read_file(job.image);
    dram.image.allocate(image_base, image.size(), IMAGE);
    std::copy(image.begin(), image.end(), dram.image.data.begin());
    dram.regions = job.regions;
    std::vector<uint8_t> inputs;
    if (job.input_bytes) inputs = read_file(job.inputs);
    if (inputs.size() != job.input_bytes * job.count) fail("the inputs have the wrong size");

    Sink outputs(job.outputs), snapshots(job.snapshots), memories(job.memories);
    for (uint64_t i = 0; i < job.count; i++) {
        dram.input.allocate(input_base, job.input_bytes, INPUT);
        std::copy_n(inputs.begin() + long(i * job.input_bytes), job.input_bytes, dram.input.data.begin());
        dram.output.allocate(output_base, job.output_bytes, OUTPUT);
        std::fill(dram.output.data.begin(), dram.output.data.end(), uint8_t(job.output_fill));
        if (i > 0 && job.soft_reset) machine.soft_reset();
        const Task& task = job.tasks[i % job.tasks.size()];
        dram.program_begin = image_base + task.entry;
        dram.program_end = dram.program_begin + task.instructions * INSTRUCTION_BYTES;
        const Outcome outcome = machine.run(task);
        print(i, outcome, machine);
        outputs.write(dram.output.data.data(), job.output_bytes);
        snapshots.write(machine.snapshots.data(), machine.snapshots.size());
        if (memories.file) machine.dump_memories(memories.file);
        if (outcome.hung || !dram.violations.list.empty()) break;
    }
    return 0;
}
