// The verilated machine with everything that is connected to it: DRAM, an AXI4-Lite host, and shadows of its memories.

#pragma once

#include <memory>

#include "Vmoevit.h"
#include "dram.h"
#include "job.h"
#include "timeline.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif

// A memory of the machine as its trace ports tell it: the bytes written since the program started, else zeros.
class Shadow {
public:
    std::vector<uint8_t> data;
    Shadow(size_t words, size_t word_bytes) : data(words * word_bytes), word_bytes(word_bytes) {}

    void clear() { std::fill(data.begin(), data.end(), 0); }

    // Writes the bytes of a unit (one word, or a pair of them) that `mask` selects.
    void write(size_t unit, size_t unit_bytes, const uint8_t* from, const uint8_t* mask) {
        const size_t at = unit * unit_bytes;
        if (at + unit_bytes > data.size()) return;
        for (size_t i = 0; i < unit_bytes; i += 8) {
            const size_t n = std::min<size_t>(8, unit_bytes - i);
            const uint8_t bits = mask[i / 8];
            if (bits == 0xFF && n == 8) {
                memcpy(&data[at + i], from + i, 8);
            } else if (bits != 0) {
                for (size_t j = 0; j < n; j++)
                    if (bits >> j & 1) data[at + i + j] = from[i + j];
            }
        }
    }

    void copy(size_t first, size_t end, std::vector<uint8_t>& out) const {
        if (first > end || end * word_bytes > data.size()) fail("a watch lies outside its memory");
        out.insert(out.end(), data.begin() + long(first * word_bytes), data.begin() + long(end * word_bytes));
    }

private:
    size_t word_bytes;
};

// The experts' queues as their trace ports tell it: a word for each token, with its score in each queue, else 0.
class Queues : public Shadow {
public:
    Queues() : Shadow(QUEUE_TOKENS, QUEUE_WORD_BYTES) {}

    void append(size_t token, size_t expert, uint16_t score) {
        const uint8_t bytes[2] = {uint8_t(score), uint8_t(score >> 8)};
        const size_t at = token * QUEUE_WORD_BYTES + 2 * expert;
        if (at + 2 <= data.size()) memcpy(&data[at], bytes, 2);
    }
};

template <typename T>
uint8_t* bytes_of(T& port) { return reinterpret_cast<uint8_t*>(&port); }
template <typename T>
Wire wire(const T& port) { return Wire{&port, sizeof port}; }

#define ADDRESS_PINS(p, c)                                                                                  \
    AddressPins {                                                                                           \
        &top.p##_##c##valid, &top.p##_##c##ready, wire(top.p##_##c##addr), &top.p##_##c##len,               \
            &top.p##_##c##size, &top.p##_##c##burst                                                         \
    }
#define READ_PINS(p)                                                                                        \
    ReadPins{"m_axi_" #p, ADDRESS_PINS(m_axi_##p, ar), bytes_of(top.m_axi_##p##_rdata), &top.m_axi_##p##_rresp, \
             &top.m_axi_##p##_rlast, &top.m_axi_##p##_rvalid, &top.m_axi_##p##_rready},

inline std::vector<ReadPins> read_pins(Vmoevit& top) { return {MOEVIT_READ_PORTS(READ_PINS)}; }

inline WritePins write_pins(Vmoevit& top) {
    return {"m_axi_dma", ADDRESS_PINS(m_axi_dma, aw), bytes_of(top.m_axi_dma_wdata), wire(top.m_axi_dma_wstrb),
            &top.m_axi_dma_wlast, &top.m_axi_dma_wvalid, &top.m_axi_dma_wready, &top.m_axi_dma_bresp,
            &top.m_axi_dma_bvalid, &top.m_axi_dma_bready};
}

struct Outcome {
    bool hung = false;
    uint64_t cycles = 0;  // from the cycle that accepts the start to the one that raises the interrupt
    uint32_t status = 0, error = 0, error_instruction = 0, retired = 0, cycles_register = 0;
    std::vector<uint32_t> counters;
};

class Machine {
    VerilatedContext context;
    Vmoevit top{&context};
    const Job& job;

public:
    Dram dram;
    Timeline timeline;
    std::vector<uint64_t> retire_cycles;
    std::vector<uint8_t> snapshots;

    explicit Machine(const Job& job)
        : job(job),
          dram(job.dram, read_pins(top), write_pins(top)),
          timeline(job.timeline),
          activation(ACTIVATION_WORDS, ACTIVATION_WORD_BYTES),
          operand(OPERAND_WORDS, OPERAND_WORD_BYTES),
          pauses(job.dram.seed + 8, job.dram.seed != 0) {
#if VM_TRACE
        if (!job.trace.empty()) {
            context.traceEverOn(true);
            top.trace(&fst, 99);
            fst.set_time_unit("1ns");  // of which a cycle takes ten
            fst.set_time_resolution("1ns");
            fst.open(job.trace.c_str());
        }
#endif
        top.rst = 1;
        for (int i = 0; i < 8; i++) tick();
        top.rst = 0;
        tick();
        if (read(REG_IDENTITY) != REGISTER_IDENTITY) fail("the IDENTITY register is wrong");
        if (read(REG_DIGEST_LO) != uint32_t(CONFIG_DIGEST) || read(REG_DIGEST_HI) != uint32_t(CONFIG_DIGEST >> 32))
            fail("the model was built for another configuration");
    }

    ~Machine() {
        top.final();
#if VM_TRACE
        if (!job.trace.empty()) fst.close();
#endif
    }

    uint64_t total_cycles() const { return cycle; }

    // For a driver, which does itself what `run` does here.
    void write_register(uint32_t offset, uint32_t value) { write(offset, value); }
    uint32_t read_register(uint32_t offset) { return read(offset); }
    // Until the interrupt is up, or for so many cycles; whether it is.
    bool wait(uint64_t cycles) {
        for (uint64_t n = 0; !top.irq && n < cycles; n++) tick();
        return top.irq;
    }

    void soft_reset() {
        write(REG_CONTROL, 2);
        for (uint64_t n = 0; n < job.watchdog && read(REG_STATUS) & (STATUS_BUSY | STATUS_DRAINING); n++) {}
        const uint32_t status = read(REG_STATUS);
        if (status != 0) dram.violations.add("STATUS is %u after a soft reset", status);
    }

    Outcome run(const Task& task) {
        set_up(task);
        retire_cycles.clear();
        snapshots.clear();
        next_watch = 0;
        activation.clear();
        operand.clear();
        queues.clear();
        dram.clear_counts();
        Outcome outcome;
        start_cycle = UINT64_MAX;  // set when the write to CONTROL is accepted
        write(REG_CONTROL, 1);
        while (irq_cycle == UINT64_MAX && !outcome.hung) {
            tick();
            outcome.hung = cycle - progress_cycle > job.watchdog || cycle - start_cycle > job.max_cycles;
        }
        outcome.cycles = (outcome.hung ? cycle : irq_cycle) - start_cycle;
        running = false;
        timeline.flush(outcome.cycles);
        timeline.stop();
        if (timeline.overlap) dram.violations.add("a stage counts two causes in one cycle");
        finish(outcome);
        return outcome;
    }

    void dump_memories(FILE* file) const {
        for (const Shadow* memory : {&activation, &operand}) fwrite(memory->data.data(), 1, memory->data.size(), file);
    }

private:
    Shadow activation, operand;
    Queues queues;
    Stall pauses;
#if VM_TRACE
    VerilatedFstC fst;
#endif
    uint64_t cycle = 0, start_cycle = 0, irq_cycle = 0, progress_cycle = 0, transfers = 0;
    size_t next_watch = 0;
    bool running = false;

    void evaluate(uint8_t clock) {
        top.clk = clock;
        top.eval();
#if VM_TRACE
        if (!job.trace.empty()) fst.dump(cycle * 10 + clock * 5);
#endif
    }

    // One cycle. The AXI4-Lite inputs are set before; its outputs hold this cycle's values until `settle` returns.
    void settle() {
        dram.drive(cycle);
        evaluate(0);
        dram.sample(cycle);
        if (running) observe();
    }
    void advance() {
        evaluate(1);
        cycle++;
    }
    void tick() {
        settle();
        advance();
    }

    void observe() {
        if (top.trace_act_valid) {
            activation.write(top.trace_act_pair, 2 * ACTIVATION_WORD_BYTES, bytes_of(top.trace_act_data), bytes_of(top.trace_act_mask));
            progress_cycle = cycle;
        }
        if (top.trace_load_valid) {
            activation.write(top.trace_load_pair, 2 * ACTIVATION_WORD_BYTES, bytes_of(top.trace_load_data), bytes_of(top.trace_load_mask));
            progress_cycle = cycle;
        }
        if (top.trace_dma_valid)
            activation.write(top.trace_dma_pair, 2 * ACTIVATION_WORD_BYTES, bytes_of(top.trace_dma_data), bytes_of(top.trace_dma_mask));
        if (top.trace_kv_valid) {
            operand.write(top.trace_kv_addr, OPERAND_WORD_BYTES, bytes_of(top.trace_kv_data), bytes_of(top.trace_kv_mask));
            progress_cycle = cycle;
        }
        if (top.trace_queue_clear) queues.clear();
        if (top.trace_queue_valid) {
            queues.append(top.trace_queue_token, top.trace_queue_expert, top.trace_queue_score);
            progress_cycle = cycle;
        }
        if (top.trace_retire) retire();
        if (irq_cycle == UINT64_MAX && !top.irq)
            timeline.observe(cycle - start_cycle, uint64_t(top.trace_events), uint64_t(top.trace_marks), uint32_t(top.trace_ring));
        if (dram.transfers != transfers) {
            transfers = dram.transfers;
            progress_cycle = cycle;
        }
        if (top.irq && irq_cycle == UINT64_MAX) irq_cycle = cycle;
    }

    void retire() {
        for (; next_watch < job.watches.size() && job.watches[next_watch].retired == retire_cycles.size(); next_watch++) {
            const Watch& watch = job.watches[next_watch];
            const Shadow& memory = watch.memory == ACTIVATION ? activation : watch.memory == QUEUE ? queues : operand;
            memory.copy(watch.first, watch.end, snapshots);
        }
        retire_cycles.push_back(cycle - start_cycle);
        timeline.flush(retire_cycles.back());
        progress_cycle = cycle;
    }

    void set_up(const Task& task) {
        write(REG_INTERRUPT_STATUS, 3);
        write(REG_INTERRUPT_ENABLE, 3);
        write64(REG_IMAGE_LO, REG_IMAGE_HI, dram.image.base);
        write(REG_IMAGE_BYTES, uint32_t(dram.image.bytes));
        write(REG_PROGRAM, uint32_t(task.entry));
        write64(REG_INPUT_LO, REG_INPUT_HI, dram.input.base);
        write(REG_INPUT_BYTES, uint32_t(dram.input.bytes));
        write64(REG_OUTPUT_LO, REG_OUTPUT_HI, dram.output.base);
        write(REG_OUTPUT_BYTES, uint32_t(dram.output.bytes));
        if (read(REG_INPUT_LO) != uint32_t(dram.input.base) || read(REG_PROGRAM) != uint32_t(task.entry))
            dram.violations.add("a register does not read back what was written");
    }

    void finish(Outcome& outcome) {
        // A machine that stopped on an error may have transfers to wait for.
        for (uint64_t n = 0; !outcome.hung && n < job.watchdog && read(REG_STATUS) & STATUS_BUSY; n++) {}
        outcome.status = read(REG_STATUS);
        outcome.error = read(REG_ERROR);
        outcome.error_instruction = read(REG_ERROR_INSTRUCTION);
        outcome.retired = read(REG_RETIRED);
        outcome.cycles_register = read(REG_CYCLES);
        for (int i = 0; i < COUNTERS; i++) outcome.counters.push_back(read(COUNTER_BASE + 4 * i));
        if (outcome.hung) return;
        const uint32_t expected = outcome.status & STATUS_ERROR ? 2 : 1;
        const uint32_t pending = read(REG_INTERRUPT_STATUS);
        if (pending != expected) dram.violations.add("INTERRUPT_STATUS is %u, not %u", pending, expected);
        write(REG_INTERRUPT_STATUS, 3);
        for (int i = 0; i < 4; i++) tick();
        if (top.irq) dram.violations.add("the interrupt does not fall when its status is cleared");
        if (dram.writes_outstanding()) dram.violations.add("writes were outstanding when the machine was done");
    }

    // AXI4-Lite -------------------------------------------------------------------------------------------------

    void write64(uint32_t low, uint32_t high, uint64_t value) {
        write(low, uint32_t(value));
        write(high, uint32_t(value >> 32));
    }

    void write(uint32_t offset, uint32_t value) {
        bool address = false, data = false, done = false;
        for (uint64_t n = 0; !done; n++) {
            if (n > 100000) fail("no answer to an AXI4-Lite write");
            top.s_axil_awaddr = offset;
            top.s_axil_awvalid = !address && (top.s_axil_awvalid || !pauses.now());
            top.s_axil_wdata = value;
            top.s_axil_wstrb = 15;
            top.s_axil_wvalid = !data && (top.s_axil_wvalid || !pauses.now());
            top.s_axil_bready = !pauses.now();
            settle();
            const bool both = address && data;
            address |= top.s_axil_awvalid && top.s_axil_awready;
            data |= top.s_axil_wvalid && top.s_axil_wready;
            if (address && data && !both && start_cycle == UINT64_MAX) begin();
            done = top.s_axil_bvalid && top.s_axil_bready;
            if (done && top.s_axil_bresp) dram.violations.add("a write to register 0x%x answers %u", offset, top.s_axil_bresp);
            advance();
            top.s_axil_awvalid &= !address;
            top.s_axil_wvalid &= !data;
        }
        top.s_axil_bready = 0;
    }

    void begin() {
        start_cycle = progress_cycle = cycle;
        irq_cycle = UINT64_MAX;
        running = true;
        timeline.begin();
    }

    uint32_t read(uint32_t offset) {
        bool address = false;
        for (uint64_t n = 0; n <= 100000; n++) {
            top.s_axil_araddr = offset;
            top.s_axil_arvalid = !address && (top.s_axil_arvalid || !pauses.now());
            top.s_axil_rready = !pauses.now();
            settle();
            address |= top.s_axil_arvalid && top.s_axil_arready;
            const bool done = top.s_axil_rvalid && top.s_axil_rready;
            const uint32_t value = top.s_axil_rdata;
            if (done && top.s_axil_rresp) dram.violations.add("a read of register 0x%x answers %u", offset, top.s_axil_rresp);
            advance();
            top.s_axil_arvalid &= !address;
            if (done) {
                top.s_axil_rready = 0;
                return value;
            }
        }
        fail("no answer to an AXI4-Lite read");
    }
};
