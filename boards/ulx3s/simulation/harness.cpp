// Runs the board's design and makes its serial line a pair of pipes: what comes on standard input is sent to the board
// bit by bit, what the board sends goes to standard output. Arguments: cycles of a bit, and the most cycles to run.
// Ends when standard input does, with the number of cycles on standard error.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fcntl.h>
#include <unistd.h>

#include "Vulx3s.h"
#include "verilated.h"

namespace {

constexpr int POLL_CYCLES = 256;  // between looks at an empty standard input
constexpr int RESET_CYCLES = 64;

// The bridge's transmitter: start bit, eight bits, stop bit.
class Sender {
public:
    explicit Sender(int divisor) : divisor_(divisor) {}
    bool idle() const { return left_ == 0 && bytes_.empty(); }
    void push(uint8_t byte) { bytes_.push_back(byte); }
    bool line() {
        if (left_ == 0) {
            if (bytes_.empty()) return true;
            frame_ = bytes_.front() << 1 | 1 << 9;
            bytes_.pop_front();
            left_ = 10 * divisor_;
        }
        const bool bit = frame_ >> ((10 * divisor_ - left_) / divisor_) & 1;
        --left_;
        return bit;
    }

private:
    int divisor_, left_ = 0;
    unsigned frame_ = 0;
    std::deque<uint8_t> bytes_;
};

// The bridge's receiver: samples in the middle of the bits.
class Receiver {
public:
    explicit Receiver(int divisor) : divisor_(divisor) {}
    // The byte that is complete with this cycle, or -1; -2 if its stop bit is low.
    int take(bool line) {
        if (at_ < 0) {
            if (line) return -1;
            at_ = 0;
            byte_ = 0;
        }
        const int bit = at_ / divisor_;
        const bool middle = at_ % divisor_ == divisor_ / 2;
        ++at_;
        if (!middle || bit == 0) return -1;
        if (bit <= 8) {
            byte_ |= line << (bit - 1);
            return -1;
        }
        at_ = -1;
        return line ? byte_ : -2;
    }

private:
    int divisor_, at_ = -1, byte_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return std::fprintf(stderr, "usage: simulate DIVISOR CYCLES\n"), 2;
    const int divisor = std::atoi(argv[1]);
    const uint64_t limit = std::strtoull(argv[2], nullptr, 10);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    VerilatedContext context;
    Vulx3s top{&context};
    Sender sender(divisor);
    Receiver receiver(divisor);
    top.clk_25mhz = 0;
    top.ftdi_txd = 1;
    top.fire1 = 1;
    top.eval();
    uint64_t cycle = 0;
    for (; cycle < limit; ++cycle) {
        if (sender.idle() && cycle % POLL_CYCLES == 0) {
            uint8_t buffer[4096];
            const ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
            if (n == 0) break;
            if (n < 0 && errno != EAGAIN && errno != EINTR) return std::perror("standard input"), 1;
            for (ssize_t i = 0; i < n; ++i) sender.push(buffer[i]);
        }
        top.fire1 = cycle < RESET_CYCLES;
        top.ftdi_txd = cycle < 2 * RESET_CYCLES ? true : sender.line();
        top.clk_25mhz = 1;
        top.eval();
        top.clk_25mhz = 0;
        top.eval();
        if (cycle < 2 * RESET_CYCLES) continue;
        const int byte = receiver.take(top.ftdi_rxd);
        if (byte == -2) return std::fprintf(stderr, "the board sent a byte without a stop bit\n"), 1;
        if (byte < 0) continue;
        const uint8_t sent = byte;
        if (write(STDOUT_FILENO, &sent, 1) != 1) return std::perror("standard output"), 1;
    }
    top.final();
    std::fprintf(stderr, "%llu\n", static_cast<unsigned long long>(cycle));
    return cycle < limit ? 0 : 3;
}
