// ${ir}
// Few tokens with keys of their own. Keys are cut at fixed positions: a warp takes a piece of 32, a block 8 pieces (a chunk), 16 chunks
// are a run. Pieces are folded into chunks, chunks into runs, runs into the result, each in order, whatever blocks they came from: a row's bits
// are its own, and those of the kernel for many tokens. The work of all tokens is one list that the grid shares. Where several blocks
// make one result, they leave their parts in memory and the one that finishes last folds them.
// Multiplies have keys (or elements of values) as rows and query heads as columns.
typedef ${type} T;
constexpr int DIM = ${dim};        // elements of a head
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};      // query heads of a key head
constexpr int PAGE = ${page};       // keys of a page
constexpr int WINDOW = ${window};     // 0: all keys
constexpr bool EARLY = ${early};  // positions and pages are inputs of the step, so they, and keys of earlier steps, may be read at once
constexpr int HEADS = GROUP < 8 ? GROUP : 8;
constexpr int SETS = (GROUP + HEADS - 1) / HEADS;  // sets of query heads of a key head
constexpr int UNITS = KV_HEADS * SETS;
constexpr int WARPS = 8;
constexpr int LIMIT = ${limit};       // parts that fit the scratch memory
constexpr bool NARROW = WINDOW > 0 && (WINDOW + 30) / 32 + 1 <= WARPS;  // one round of pieces holds a window
constexpr bool HELD = DIM <= 64;      // a piece's keys and values fit the registers; keys of the next round are loaded ahead
constexpr int QC = (DIM + 31) / 32;   // steps of 32 elements of q and k
constexpr int VC = (DIM + 63) / 64;   // steps of 64 elements of v
constexpr int ROW = DIM + 4;          // a head's sums in shared memory
constexpr int STATE = WARPS * HEADS * ROW;
constexpr int PAIRS = (HEADS * DIM / 2 + 255) / 256;  // pairs of sums that a thread merges
constexpr int PART = (HEADS * (DIM + 2) + 3) / 4 * 4;  // floats of a part in memory
constexpr int SHARED = 2 * STATE > 16 * PART ? 2 * STATE : 16 * PART;
constexpr int LEVEL = 16 * VC + 4;           // sums of a lane of a warp that is alone
constexpr int OWN = (3 * LEVEL + 4 * QC) * 32 + 4;  // floats of such a warp: a chunk, a run, all runs, queries, its work
constexpr int STATES = HELD && SHARED < WARPS * OWN ? WARPS * OWN : SHARED;

// Greatest logit, sum of exponentials and two of the weighted sums of a range of keys.
struct Fold {
  f32 most;
  f32 sum;
  f32 x;
  f32 y;
};
__device__ __forceinline__ void clear(Fold (&f)[PAIRS]) {
#pragma unroll
  for (int i = 0; i < PAIRS; i++) f[i] = {-INF, 0.0f, 0.0f, 0.0f};
}
// Roundings are spelled out, here and in the kernel for many tokens.
__device__ __forceinline__ void merge(Fold& f, const Fold& g) {
  const f32 most = fmaxf(f.most, g.most);
  const f32 base = most == -INF ? 0.0f : most;
  const f32 a = exp2_fast(f.most - base);
  const f32 b = exp2_fast(g.most - base);
  f.most = most;
  f.sum = fmaf(f.sum, a, __fmul_rn(g.sum, b));
  f.x = fmaf(f.x, a, __fmul_rn(g.x, b));
  f.y = fmaf(f.y, a, __fmul_rn(g.y, b));
}

// What a block does for one result or part of it.
struct Work {
  i32 token;
  i32 unit;        // key head and set of query heads
  i32 pos;
  i32 part;        // which of the token's parts
  i32 begin, end;  // its pieces; none if end < begin
  i32 first;       // piece of warp 0 in this round
};

// True if so many works, one a warp at a time, leave few warps idle: then warps that work alone are faster than blocks that share each work.
__device__ __forceinline__ bool fills(i32 works) {
  const u32 warps = gridDim.x * WARPS;
  const u32 rounds = ((u32)works + warps - 1) / warps;
  return gridDim.x >= ${blocks} && (u64)works * 4 >= (u64)rounds * warps * 3;
}

// Transposes a matrix of 8 x 8 elements that a warp holds, a row in 4 lanes.
__device__ __forceinline__ u32 transpose8(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

