// Runs kernels on a CPU: each thread a coroutine, warps meeting at shuffles, blocks and clusters at barriers. Blocks run one after the other, in any order; those of a
// cluster, and of kernels whose blocks tell each other what they have done, at the same time.
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>
using std::max;
using std::min;

#define __device__
#define __global__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Dim3 { unsigned x, y, z; };
struct Fiber {
  ucontext_t context;
  Dim3 thread;
  bool done, waits_block, waits_warp, arrived;  // the last: at the cluster's barrier
  unsigned warp_generation, cluster_generation;
};
struct Warp {
  unsigned arrived = 0, generation = 0, alive = 32;
  uint64_t slot[2][32];
  uint32_t matrix[2][32][6];
};
// A block: `memory` is its shared memory while another block runs.
struct Block {
  unsigned rank;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned named_arrived[16] = {}, named_generation[16] = {};
  std::vector<char> memory;
  bool begun = false, ended = false;
  unsigned late_warp = 0, late_rounds = 0;  // a warp that stands still for so many rounds
};
static Fiber* current;
static Block* running;  // whose threads run
struct Cluster {
  unsigned first, generation = 0;
  std::vector<Block> blocks;
};
static Cluster* cluster;                 // of the block that runs, or of the copy that is made
static char *shared_begin, *shared_end;  // where blocks that run at the same time have their shared memory
static ucontext_t scheduler;
static Dim3 blockIdx, blockDim, gridDim;
#define threadIdx (current->thread)

static void yield_fiber() { swapcontext(&current->context, &scheduler); }
static Warp& own_warp() { return running->warps[current->thread.x / 32]; }
static int own_lane() { return current->thread.x & 31; }

static void __syncthreads() {
  current->waits_block = true;
  yield_fiber();
}
// Waits until the whole warp is here; gives the generation whose slots are now complete.
static unsigned meet(Warp& w) {
  const unsigned mine = w.generation;
  if (++w.arrived == w.alive) {
    w.arrived = 0;
    w.generation++;
  } else {
    current->waits_warp = true;
    current->warp_generation = mine;
    yield_fiber();
  }
  return mine;
}
template <class T> static const uint64_t* exchange(T x) {
  Warp& w = own_warp();
  const unsigned side = w.generation & 1;
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof x);
  w.slot[side][own_lane()] = bits;
  meet(w);
  return w.slot[side];
}
template <class T> static T pick(const uint64_t* slots, int lane) {
  T x;
  memcpy(&x, &slots[lane & 31], sizeof x);
  return x;
}
template <class T> static T __shfl_xor_sync(unsigned, T x, int m) { return pick<T>(exchange(x), own_lane() ^ m); }
template <class T> static T __shfl_sync(unsigned, T x, int lane) { return pick<T>(exchange(x), lane); }
template <class T> static T __shfl_up_sync(unsigned, T x, int d) {
  const uint64_t* s = exchange(x);
  return own_lane() >= d ? pick<T>(s, own_lane() - d) : x;
}
static unsigned __ballot_sync(unsigned, bool p) {
  const uint64_t* s = exchange((unsigned)p);
  unsigned mask = 0;
  for (int i = 0; i < 32; i++) mask |= (unsigned)(s[i] & 1) << i;
  return mask;
}
static unsigned __reduce_max_sync(unsigned, unsigned x) {
  const uint64_t* s = exchange(x);
  unsigned y = 0;
  for (int i = 0; i < 32; i++) y = max(y, (unsigned)s[i]);
  return y;
}
static unsigned __reduce_min_sync(unsigned, unsigned x) {
  const uint64_t* s = exchange(x);
  unsigned y = ~0u;
  for (int i = 0; i < 32; i++) y = min(y, (unsigned)s[i]);
  return y;
}
static unsigned __reduce_or_sync(unsigned, unsigned x) {
  const uint64_t* s = exchange(x);
  unsigned all = 0;
  for (int i = 0; i < 32; i++) all |= (unsigned)s[i];
  return all;
}
static unsigned __match_any_sync(unsigned, unsigned x) {
  const uint64_t* s = exchange(x);
  unsigned mask = 0;
  for (int i = 0; i < 32; i++) mask |= (unsigned)((unsigned)s[i] == x) << i;
  return mask;
}
static bool __any_sync(unsigned m, bool p) { return __ballot_sync(m, p) != 0; }

static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static int __float2int_rz(float x) { return x != x ? 0 : x >= 2147483648.0f ? 0x7fffffff : x < -2147483648.0f ? (int)0x80000000 : (int)x; }
static unsigned __float2uint_rz(float x) { return x != x || x < 0 ? 0 : x >= 4294967296.0f ? 0xffffffffu : (unsigned)x; }
static float __int2float_rn(int x) { return (float)x; }
static float __uint2float_rn(unsigned x) { return (float)x; }
static float __fmul_rn(float x, float y) { return x * y; }
static float __fadd_rn(float x, float y) { return x + y; }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static int __popc(unsigned x) { return __builtin_popcount(x); }
static int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static int __ffs(int x) { return __builtin_ffs(x); }
static unsigned __funnelshift_l(unsigned low, unsigned high, int n) { return (n &= 31) == 0 ? high : high << n | low >> (32 - n); }
static unsigned __funnelshift_r(unsigned low, unsigned high, int n) { return (n &= 31) == 0 ? low : low >> n | high << (32 - n); }
static void __trap() { fprintf(stderr, "ERROR: trap\n"); exit(1); }
static unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (8 * (s >> (4 * i) & 7)) & 255) << (8 * i);
  return r;
}
static unsigned atomicAdd(unsigned* p, unsigned x) { const unsigned old = *p; *p += x; return old; }
static int atomicAdd(int* p, int x) { const int old = *p; *p += x; return old; }
static int atomicMin(int* p, int x) { const int old = *p; *p = min(old, x); return old; }
static int atomicMax(int* p, int x) { const int old = *p; *p = max(old, x); return old; }
static unsigned atomicInc(unsigned* p, unsigned most) { const unsigned old = *p; *p = old >= most ? 0 : old + 1; return old; }
static void __threadfence() {}
template <class T> static T __ldcg(const T* p) { return *p; }
static unsigned atomicOr(unsigned* p, unsigned x) { const unsigned old = *p; *p |= x; return old; }

// What the kernels' inline assembly computes.
static uint16_t emu_bf16(float x) {
  unsigned u = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static float emu_f16_to_f32(uint16_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
static uint16_t emu_f16(float x) { _Float16 h = (_Float16)x; uint16_t u; memcpy(&u, &h, 2); return u; }
static float emu_max_nan(float x, float y) { return x != x ? x : y != y ? y : x > y ? x : y; }
static float emu_min_nan(float x, float y) { return x != x ? x : y != y ? y : x < y ? x : y; }
static unsigned emu_mul2(unsigned a, unsigned b) {
  auto part = [](unsigned x, unsigned y) { return (unsigned)emu_bf16(__uint_as_float(x << 16) * __uint_as_float(y << 16)); };
  return part(a & 0xffff, b & 0xffff) | part(a >> 16, b >> 16) << 16;
}
static float emu_half(bool bf, unsigned word, int half) {
  const uint16_t bits = (uint16_t)(word >> (16 * half));
  return bf ? __uint_as_float((unsigned)bits << 16) : emu_f16_to_f32(bits);
}
// A sum as tensor cores make it: all terms are aligned to the greatest and cut off 25 bits below it, so that their order does not matter.
static float emu_sum(const double* terms, int count) {
  double plain = 0.0, most = 0.0;
  for (int i = 0; i < count; i++) {
    plain += terms[i];
    most = fabs(terms[i]) > most ? fabs(terms[i]) : most;
  }
  if (most == 0.0 || !std::isfinite(plain)) return (float)plain;
  const int shift = 25 - std::ilogb(most);
  int64_t sum = 0;
  for (int i = 0; i < count; i++) sum += (int64_t)ldexp(terms[i], shift);
  const double exact = ldexp((double)sum, -shift);
  const float rounded = (float)exact;
  return fabs((double)rounded) > fabs(exact) ? nextafterf(rounded, 0.0f) : rounded;
}
static void emu_mma(bool bf, float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Warp& w = own_warp();
  const unsigned side = w.generation & 1;
  const unsigned regs[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(w.matrix[side][own_lane()], regs, sizeof regs);
  meet(w);
  const int g = own_lane() >> 2, c = own_lane() & 3;
  for (int e = 0; e < 4; e++) {
    const int row = g + 8 * (e >> 1), column = 2 * c + (e & 1);
    double terms[17] = {d[e]};
    for (int k = 0; k < 16; k++) {
      const int a_lane = (row & 7) * 4 + (k & 7) / 2, b_lane = column * 4 + (k & 7) / 2;
      const unsigned a = w.matrix[side][a_lane][(row >> 3) + 2 * (k >> 3)];
      const unsigned b = w.matrix[side][b_lane][4 + (k >> 3)];
      terms[k + 1] = (double)emu_half(bf, a, k & 1) * emu_half(bf, b, k & 1);
    }
    d[e] = emu_sum(terms, 17);
  }
}

static unsigned emu_transpose8(unsigned x) {
  const uint64_t* s = exchange(x);
  const int g = own_lane() >> 2, c = own_lane() & 3;
  const unsigned lo = (unsigned)(s[2 * c * 4 + g / 2] >> (16 * (g & 1))) & 0xffff;
  const unsigned hi = (unsigned)(s[(2 * c + 1) * 4 + g / 2] >> (16 * (g & 1))) & 0xffff;
  return lo | hi << 16;
}

// Barriers of a part of a block: the threads that are there go round until the last one comes.
static void emu_barrier(int id, unsigned threads) {
  const unsigned mine = running->named_generation[id];
  if (++running->named_arrived[id] == threads) {
    running->named_arrived[id] = 0;
    running->named_generation[id]++;
    return;
  }
  while (running->named_generation[id] == mine) yield_fiber();
}
// The barrier of a cluster: those that have ended count as arrived.
static void emu_cluster_step() {
  for (Block& block : cluster->blocks) {
    for (Fiber& fiber : block.fibers) {
      if (!fiber.done && !fiber.arrived) return;
    }
  }
  cluster->generation++;
  for (Block& block : cluster->blocks) {
    for (Fiber& fiber : block.fibers) fiber.arrived = false;
  }
}
static void emu_cluster_arrive() {
  if (current->arrived) {
    fprintf(stderr, "runtime error: thread %u of block %u arrives twice\n", threadIdx.x, blockIdx.x);
    exit(3);
  }
  current->arrived = true;
  current->cluster_generation = cluster->generation;
  emu_cluster_step();
}
static void emu_cluster_wait() {
  for (int i = 0; cluster->generation == current->cluster_generation; i++) {
    if (i == 1 << 20) {
      fprintf(stderr, "deadlock: thread %u of block %u waits for its cluster\n", threadIdx.x, blockIdx.x);
      exit(3);
    }
    yield_fiber();
  }
}
// Addresses in another block have its number, plus one, in their upper four bits.
static unsigned emu_address_in(unsigned at, unsigned rank) { return (at & 0xfffffff) | (rank + 1) << 28; }
static char* emu_at(unsigned at, unsigned rank) {
  if (at >> 28) rank = (at >> 28) - 1;
  char* const here = (char*)(uintptr_t)(at & 0xfffffff);
  if (rank < cluster->blocks.size() && &cluster->blocks[rank] == running) return here;
  const bool there = rank < cluster->blocks.size() && here >= shared_begin && here < shared_end;
  if (!there || !cluster->blocks[rank].begun || cluster->blocks[rank].ended) {
    const char* why = !there ? "is not there" : cluster->blocks[rank].ended ? "has ended" : "has not begun";
    fprintf(stderr, "runtime error: %p of block %u is used, which %s\n", here, cluster->first + rank, why);
    exit(3);
  }
  return cluster->blocks[rank].memory.data() + (here - shared_begin);
}
static char* emu_at(unsigned at) { return emu_at(at, running->rank); }
static void __syncwarp() { meet(own_warp()); }
static void emu_load_matrices(unsigned (&d)[4], unsigned at) {
  const uint64_t* s = exchange(at);
  for (int m = 0; m < 4; m++) {
    const unsigned row = pick<unsigned>(s, 8 * m + (own_lane() >> 2));
    memcpy(&d[m], (const char*)(uintptr_t)row + 4 * (own_lane() & 3), 4);
  }
  __syncwarp();  // all have read
}

// Signals: 8 bytes in shared memory, the phase, arrivals that make a phase and those of this one in the low half, bytes that are still to come in the
// high one. Copies are made late and in any order; a signal that never completes is a deadlock here as well.
struct Signal { unsigned phase : 1, arrivals : 15, arrived : 16; int pending; };
static Signal& emu_signal(unsigned at) { return *(Signal*)emu_at(at); }
static void emu_signal_step(Signal& s) {
  if (s.arrived == s.arrivals && s.pending == 0) {
    s.phase ^= 1;
    s.arrived = 0;
  }
}
static void emu_signal_init(unsigned at, unsigned arrivals) { emu_signal(at) = {0, arrivals, 0, 0}; }
static void emu_signal_arrive(unsigned at) {
  Signal& s = emu_signal(at);
  s.arrived++;
  emu_signal_step(s);
}
static void emu_signal_expect(unsigned at, unsigned bytes) {
  emu_signal(at).pending += (int)bytes;
  emu_signal_arrive(at);
}
struct Copy { std::function<void()> make; unsigned bytes, signal; Cluster* of = cluster; };  // addresses name their block
static std::vector<Copy> copies;  // under way
static unsigned copy_dice = 1;
// Now and then one of the copies under way arrives.
static void emu_some_copy() {
  copy_dice = copy_dice * 1664525u + 1013904223u;
  if (copies.empty() || copy_dice >> 27 != 0) return;
  const size_t i = (copy_dice >> 8) % copies.size();
  const Copy c = copies[i];
  copies.erase(copies.begin() + i);
  Cluster* const own = cluster;
  cluster = c.of;
  c.make();
  Signal& s = emu_signal(c.signal);
  s.pending -= (int)c.bytes;
  emu_signal_step(s);
  cluster = own;
}
static void emu_signal_wait(unsigned at, unsigned parity) {
  for (int i = 0; emu_signal(at).phase == parity; i++) {
    emu_some_copy();
    if (i == 1 << 20) {
      fprintf(stderr, "deadlock: thread %u of block %u waits for %d bytes\n", threadIdx.x, blockIdx.x, emu_signal(at).pending);
      exit(3);
    }
    yield_fiber();
  }
}
static void __nanosleep(unsigned) { yield_fiber(); }
static void emu_fetch(unsigned to, const void* from, unsigned bytes, unsigned signal) {
  if (bytes == 0 || ((bytes | to | (uintptr_t)from) & 15)) {
    fprintf(stderr, "runtime error: copy of %u bytes at misaligned addresses\n", bytes);
    exit(3);
  }
  const unsigned rank = running->rank;
  copies.push_back({[=] { memcpy(emu_at(to, rank), from, bytes); }, bytes, emu_address_in(signal, rank)});
}
// Words to another block.
static void emu_send(unsigned to, const void* from, unsigned bytes, unsigned signal) {
  if (!(to >> 28) || !(signal >> 28) || to >> 28 != signal >> 28 || to % bytes) {
    fprintf(stderr, "runtime error: words sent to %#x, reported to %#x\n", to, signal);
    exit(3);
  }
  std::vector<char> words((const char*)from, (const char*)from + bytes);
  copies.push_back({[=] { memcpy(emu_at(to), words.data(), bytes); }, bytes, signal});
}

// Blocks.
static std::function<void()>* body;
static void enter() {
  (*body)();
  current->done = true;
  yield_fiber();
}
static std::vector<char*> stacks;  // that no thread has
static void start(Block& block, unsigned threads) {
  const size_t STACK = 128 << 10;
  block.fibers.assign(threads, Fiber());
  block.warps.assign((threads + 31) / 32, Warp());
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = block.fibers[i];
    if (stacks.empty()) stacks.push_back((char*)malloc(STACK));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.back();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    fiber.thread = {i, 0, 0};
    stacks.pop_back();
    makecontext(&fiber.context, enter, 0);
  }
}
// Runs the threads of a block until each waits for something; true if all have ended. Warps go on in any order, lanes forwards or backwards, and one warp may fall
// far behind the others.
static bool run_block(Block& block) {
  bool progress = false, alive = false, held = false;
  const unsigned warps = block.warps.size();
  copy_dice = copy_dice * 1664525u + 1013904223u;
  const unsigned first = (copy_dice >> 8) % warps;
  const bool backwards = copy_dice >> 27 & 1;
  if (block.late_rounds == 0 && copy_dice >> 28 == 0) {
    block.late_warp = (copy_dice >> 12) % warps;
    block.late_rounds = 1 + (copy_dice >> 20 & 127);
  } else if (block.late_rounds > 0) {
    block.late_rounds--;
  }
  for (unsigned w = 0; w < warps; w++) {
    const unsigned warp = (first + w) % warps;
    if (block.late_rounds > 0 && warp == block.late_warp) {
      held = true;
      continue;
    }
    const unsigned lanes = min<unsigned>(32, block.fibers.size() - 32 * warp);
    for (unsigned i = 0; i < lanes; i++) {
      Fiber& fiber = block.fibers[32 * warp + (backwards ? lanes - 1 - i : i)];
      if (fiber.done) continue;
      alive = true;
      if (fiber.waits_block) continue;
      if (fiber.waits_warp) {
        if (block.warps[warp].generation == fiber.warp_generation) continue;
        fiber.waits_warp = false;
      }
      current = &fiber;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.done) emu_cluster_step();
      progress = true;
    }
  }
  if (held && !progress) block.late_rounds = 0;
  if (held || progress) return false;
  if (!alive) return true;
  // Nobody can go on: all must be at the block's barrier, or have left.
  for (Fiber& fiber : block.fibers) {
    if (!fiber.done && !fiber.waits_block) {
      fprintf(stderr, "deadlock: thread %u of block %u waits for its warp\n", fiber.thread.x, blockIdx.x);
      exit(3);
    }
    fiber.waits_block = false;
  }
  return false;
}
// Runs clusters of so many blocks, up to `together` at a time.
static void run_clusters(const std::vector<unsigned>& firsts, unsigned blocks, unsigned threads, unsigned together, std::function<void()> f) {
  body = &f;
  const bool shared = shared_begin != nullptr;
  struct Active { Cluster* of; unsigned late, round; };
  std::vector<Active> active;
  for (size_t next = 0; next < firsts.size() || !active.empty();) {
    while (active.size() < together && next < firsts.size()) {
      cluster = new Cluster();
      cluster->first = firsts[next++];
      cluster->blocks.resize(blocks);
      for (unsigned b = 0; b < blocks; b++) {
        cluster->blocks[b].rank = b;
        if (shared) cluster->blocks[b].memory.assign(shared_end - shared_begin, (char)0xa5);
        start(cluster->blocks[b], threads);
      }
      // One block of several begins late.
      copy_dice = copy_dice * 1664525u + 1013904223u;
      active.push_back({cluster, (copy_dice >> 8) % blocks, 0});
    }
    copy_dice = copy_dice * 1664525u + 1013904223u;
    const size_t turn = (copy_dice >> 8) % active.size();
    Active& own = active[turn];
    cluster = own.of;
    bool ended = true;
    for (Block& block : cluster->blocks) {
      if (!block.ended && (blocks == 1 || block.rank != own.late || own.round * threads * blocks >= 1 << 21)) {
        block.begun = true;
        running = &block;
        blockIdx = {cluster->first + block.rank, 0, 0};
        if (shared) memcpy(shared_begin, block.memory.data(), block.memory.size());
        block.ended = run_block(block);
        if (shared) memcpy(block.memory.data(), shared_begin, block.memory.size());
      }
      ended = ended && block.ended;
    }
    own.round++;
    if (!ended) continue;
    for (const Copy& copy : copies) {
      if (copy.of != cluster) continue;
      fprintf(stderr, "runtime error: block %u ends with copies under way\n", blockIdx.x);
      exit(3);
    }
    for (Block& block : cluster->blocks) {
      for (Fiber& fiber : block.fibers) stacks.push_back((char*)fiber.context.uc_stack.ss_sp);
    }
    delete cluster;
    active.erase(active.begin() + turn);
  }
}

template <class... A, size_t... I> static void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
  f(*(A*)args[I]...);
}
typedef std::function<void(unsigned grid, unsigned block, void** args)> Kernel;
// A kernel of clusters of so many blocks, up to `together` of which run at a time; where it has shared memory from `begin` to `end`, each block has its own.
template <class... A> static Kernel kernel(void (*f)(A...), unsigned blocks, unsigned together, char* begin, char* end) {
  return [=](unsigned grid, unsigned block, void** args) {
    blockDim = {block, 1, 1};
    gridDim = {grid, 1, 1};
    shared_begin = begin;
    shared_end = end;
    if (grid % blocks) {
      fprintf(stderr, "runtime error: %u blocks in clusters of %u\n", grid, blocks);
      exit(3);
    }
    // Clusters in any order: neither the first nor the last is the one that ends last.
    const unsigned clusters = grid / blocks;
    copy_dice = copy_dice * 1664525u + 1013904223u;
    unsigned step = clusters < 3 ? 1 : 2 + (copy_dice >> 8) % (clusters - 2);
    while (std::__gcd(step, clusters) > 1) step--;
    std::vector<unsigned> firsts;
    for (uint64_t i = 0; i < clusters; i++) firsts.push_back((unsigned)(((copy_dice >> 16) + i * step) % clusters) * blocks);
    run_clusters(firsts, blocks, block, together, [&] { call(f, args, std::index_sequence_for<A...>()); });
  };
}
static std::map<std::string, Kernel> table();

// Jobs: see mod.rs.
int main(int, char** argv) {
  FILE* jobs = fopen(argv[1], "r");
  FILE* blob = fopen(argv[2], "rb");
  FILE* out = fopen(argv[3], "wb");
  auto kernels = table();
  if (const char* seed = getenv("GOSSAMER_EMULATE_SEED")) copy_dice = strtoul(seed, nullptr, 10);
  std::vector<std::pair<char*, size_t>> buffers;
  char tag[8];
  while (fscanf(jobs, "%7s", tag) == 1) {
    if (tag[0] == 'J') {
      for (auto& b : buffers) free(b.first);
      buffers.clear();
      char name[256];
      if (fscanf(jobs, "%255s", name) != 1) return 4;
      fprintf(stderr, "%s\n", name);
    } else if (tag[0] == 'B') {
      size_t bytes;
      int given;
      if (fscanf(jobs, "%zu %d", &bytes, &given) != 2) return 4;
      char* p = (char*)aligned_alloc(256, (bytes + 255) / 256 * 256);
      free(p);
      if (posix_memalign((void**)&p, 16, bytes ? bytes : 1)) return 4;
      memset(p, 0xff, bytes);
      if (given && fread(p, 1, bytes, blob) != bytes) return 4;
      buffers.push_back({p, bytes});
    } else if (tag[0] == 'L') {
      char entry[256];
      unsigned grid, block;
      int count;
      if (fscanf(jobs, "%255s %u %u %d", entry, &grid, &block, &count) != 4) return 4;
      // A structure by value is all zeros, or a tensor map.
      struct alignas(64) Value { uint64_t words[16]; };
      std::vector<Value> values(count, Value());
      std::vector<void*> args(count);
      for (int i = 0; i < count; i++) {
        char kind;
        long long x;
        if (fscanf(jobs, " %c %lld", &kind, &x) != 2) return 4;
        values[i].words[0] = kind == 'p' || kind == 'm' ? (uint64_t)buffers.at(x).first : (uint64_t)x;
        if (kind == 'm' && fscanf(jobs, " %ld %ld %ld", &values[i].words[1], &values[i].words[2], &values[i].words[3]) != 3) return 4;
        args[i] = &values[i];
      }
      if (!kernels.count(entry)) { fprintf(stderr, "no kernel %s\n", entry); return 5; }
      kernels[entry](grid, block, args.data());
    } else if (tag[0] == 'Z') {
      size_t i;
      if (fscanf(jobs, "%zu", &i) != 1) return 4;
      for (size_t b = 0; b < buffers.at(i).second; b++) {
        if (buffers.at(i).first[b] != 0) { fprintf(stderr, "runtime error: a counter is not 0 at the end\n"); return 5; }
      }
    } else if (tag[0] == 'O') {
      size_t i;
      if (fscanf(jobs, "%zu", &i) != 1) return 4;
      fwrite(buffers.at(i).first, 1, buffers.at(i).second, out);
    }
  }
  fclose(out);
  return 0;
}
