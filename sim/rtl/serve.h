// A machine and its memory for a driver on the other side of two pipes (sim/device.py).
//
// A request on standard input is one character and two numbers a, b of 64 bits, little-endian, and for 'W' b bytes of
// data. The answer on standard output is one byte, 0 if all is well, a number of 64 bits, and for 'R' that many
// bytes of data. If it is not, the byte is 1 and the number the length of a text that says why.
//
//   r a      read register a                 m a b    a buffer of b bytes at address a, zero at first
//   w a b    write b to register a           u a      give up the buffer at a
//   i a      wait for the interrupt, for     R a b    read b bytes at address a
//            at most a cycles; 1 if it is up W a b    write b bytes there
//   c        cycles since power-up           f a b    from now on b bytes at a answer SLVERR

#pragma once

#include "machine.h"

namespace serving {

// Whether all bytes came; the other side may close its end between two requests.
inline bool take(void* data, size_t bytes) { return fread(data, 1, bytes, stdin) == bytes; }

inline void answer(uint8_t failed, const void* data, uint64_t value, size_t bytes) {
    fwrite(&failed, 1, 1, stdout);
    fwrite(&value, sizeof value, 1, stdout);
    fwrite(data, 1, bytes, stdout);
    fflush(stdout);
}

}  // namespace serving

inline void serve(Machine& machine) {
    Dram& dram = machine.dram;
    char operation;
    uint64_t numbers[2];
    std::vector<uint8_t> data;
    while (serving::take(&operation, 1)) {
        if (!serving::take(numbers, sizeof numbers)) fail("half a request");
        const uint64_t a = numbers[0], b = numbers[1];
        uint64_t value = 0;
        data.clear();
        if (operation == 'r') value = machine.read_register(uint32_t(a));
        else if (operation == 'w') machine.write_register(uint32_t(a), uint32_t(b));
        else if (operation == 'i') value = machine.wait(a);
        else if (operation == 'c') value = machine.total_cycles();
        else if (operation == 'm') dram.buffers[a].allocate(a, b, IMAGE);
        else if (operation == 'u') dram.buffers.erase(a);
        else if (operation == 'f') dram.fault_begin = a, dram.fault_end = a + b;
        else if (operation == 'W') {
            data.resize(b);
            if (!serving::take(data.data(), b)) fail("half a request");
            uint8_t* const to = dram.span(a, b);
            if (to == nullptr) dram.violations.add("the driver writes outside its buffers, at 0x%" PRIx64, a);
            else std::copy(data.begin(), data.end(), to);
            data.clear();
        } else if (operation == 'R') {
            const uint8_t* const from = dram.span(a, b);
            if (from == nullptr) dram.violations.add("the driver reads outside its buffers, at 0x%" PRIx64, a);
            else data.assign(from, from + b);
            value = data.size();
        } else fail("unknown request");
        std::string broken;
        for (const std::string& violation : dram.violations.list) broken += (broken.empty() ? "" : "; ") + violation;
        dram.violations.list.clear();
        if (broken.empty()) serving::answer(0, data.data(), value, data.size());
        else serving::answer(1, broken.data(), broken.size(), broken.size());
    }
}
