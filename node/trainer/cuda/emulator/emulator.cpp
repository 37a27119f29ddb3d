// Runs the kernels on the processor. The library has one function, `emulate`, which a test calls where the program would
// launch a kernel: so the program's own choice of kernels, arguments and grids is tested with them.
#include "../kernels/norm.cu"
#include "../kernels/elements.cu"
#include "../kernels/softmax.cu"
#include "../kernels/flash.cu"

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
alignas(1024) unsigned char dynamic_shared[1 << 18];

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

struct Warp {
    Barrier barrier;
    unsigned char shown[32 * 64];
};

struct Fiber {
    ucontext_t context;
    std::vector<unsigned char> stack;
    bool done = false;
};

const size_t STACK_BYTES = 1 << 17;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Barrier block;
static ucontext_t scheduler;
static unsigned current, threads;
static bool moved;
static std::function<void()> body;

unsigned lane() { return current % 32; }

static void rest() {
    unsigned me = current;
    swapcontext(&fibers[me].context, &scheduler);
    threadIdx = {me, 0, 0};
}

static void wait(Barrier &barrier, unsigned count) {
    moved = true;
    unsigned generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    while (barrier.generation == generation) rest();
    moved = true;
}

void wait_for_block() { wait(block, threads); }

const unsigned char *exchange(const void *mine, size_t size) {
    Warp &warp = warps[current / 32];
    // First all have read what was shown before, then all have shown anew.
    wait(warp.barrier, 32);
    memcpy(warp.shown + 64 * lane(), mine, size);
    wait(warp.barrier, 32);
    return warp.shown;
}

static void fiber_main() {
    body();
    fibers[current].done = true;
    moved = true;
    swapcontext(&fibers[current].context, &scheduler);
}

static void run_block() {
    block = Barrier();
    warps.assign(threads / 32, Warp());
    // Shared memory begins as anything: here as what would be noticed, NaN in every dtype.
    memset(dynamic_shared, 0xff, sizeof dynamic_shared);
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        fiber.done = false;
        fiber.stack.resize(STACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (unsigned left = threads; left > 0;) {
        moved = false;
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].done) continue;
            current = i;
            threadIdx = {i, 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
            if (fibers[i].done) left--;
        }
        if (!moved && left > 0) {
            fprintf(stderr, "%u threads wait at barriers that the others do not come to\n", left);
            abort();
        }
    }
}

typedef std::function<std::function<void()>(void **)> Bind;

template <typename... Args, size_t... I>
static std::function<void()> bound(void (*kernel)(Args...), void **args, std::index_sequence<I...>) {
    std::tuple<Args...> values(*(Args *)args[I]...);
    return [=] { std::apply(kernel, values); };
}

template <typename... Args>
static Bind binder(void (*kernel)(Args...), size_t) {
    return [=](void **args) { return bound(kernel, args, std::index_sequence_for<Args...>()); };
}

template <typename... Args>
static size_t count_arguments(void (*)(Args...)) {
    return sizeof...(Args);
}

struct Entry {
    Bind bind;
    size_t arguments;
};

static const std::map<std::string, Entry> &entries() {
#define KERNEL(name) {#name, {binder(&name, 0), count_arguments(&name)}},
    static const std::map<std::string, Entry> all = {
#include KERNEL_LIST
    };
    return all;
}
}  // namespace emulator

// 0 when it ran, 1 for an unknown kernel, 2 for a wrong number of arguments, 3 for a block that cannot be.
extern "C" int emulate(const char *kernel, const unsigned *grid, unsigned block_threads, unsigned shared_bytes, void **args, size_t count) {
    using namespace emulator;
    auto found = entries().find(kernel);
    if (found == entries().end()) return 1;
    if (found->second.arguments != count) return 2;
    if (block_threads % 32 || block_threads == 0 || block_threads > 1024 || shared_bytes > 101376) return 3;
    body = found->second.bind(args);
    threads = block_threads;
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], 1};
    for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            run_block();
        }
    return 0;
}
