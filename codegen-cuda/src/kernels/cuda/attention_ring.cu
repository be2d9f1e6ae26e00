// ${ir}
// Steps that decode many sequences. As in the kernel for few, a piece is 32 keys, a chunk 4 pieces, a quad 4 chunks, a run 4 quads; pieces are folded into
// chunks, chunks into quads, quads into runs and runs into the result, each in order, so a row has the bits that the kernel for few gives it.
// The chunks of all tokens and key heads stand in one list, of which every block takes an equal stretch, whatever the lengths. Most warps of a block take
// its chunks in turn: keys and values come by bulk copies through a ring of pieces that each warp has of its own and that goes on into its next chunk. The
// last few warps fold what these leave in slots, each the sums of some of the heads. Where stretches end within a token and key head, the block that has
// its first chunks folds as they come and the others leave in memory what they can fold; the block that is last goes on from there.
// Multiplies have keys (or elements of values) as rows and query heads as columns.
typedef ${type} T;
constexpr int DIM = ${dim};        // elements of a head
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};      // query heads of a key head
constexpr int PAGE = ${page};       // keys of a page, whole pieces
constexpr bool EARLY = ${early};  // positions and pages are inputs of the step, so they, and keys of earlier steps, may be read at once
constexpr int HEADS = GROUP < 8 ? GROUP : 8;
constexpr int SETS = (GROUP + HEADS - 1) / HEADS;  // sets of query heads of a key head
constexpr int UNITS = KV_HEADS * SETS;
constexpr int WARPS = ${warps};   // that multiply
constexpr int FOLDERS = ${folders};  // warps that fold
constexpr int STAGES = ${stages};  // pieces of a warp's ring
constexpr int SLOTS = ${slots};   // chunks that wait to be folded
constexpr int LISTED = ${listed};  // tokens that the lists have room for
constexpr int THREADS = (WARPS + FOLDERS) * 32;
constexpr int READ = ${read};     // nodes that are read at a time
constexpr int QC = (DIM + 31) / 32;  // steps of 32 elements of q and k
constexpr u32 HALF = 32 * DIM * 2;   // bytes of the keys of a piece
constexpr int ROW = DIM + 4;         // a head's sums in shared memory
// A warp that folds has whole heads, so that nothing that it reads of a part in memory was written by another: each counts its own parts.
constexpr int OWN_HEADS = (HEADS + FOLDERS - 1) / FOLDERS;
constexpr int OWN_FOURS = OWN_HEADS * DIM / 4;    // fours of sums of these
constexpr int TURNS = (OWN_FOURS + 31) / 32;      // and of a lane
constexpr int PART = (HEADS * (DIM + 2) + 3) / 4 * 4;  // floats of a node in memory

// A chunk of the list: chunk `at` of `chunks` of a token and unit (key head and set of query heads).
struct Place {
  i32 token;
  i32 unit;
  i32 at;
  i32 chunks;
};

// A chunk that a warp does.
struct Chunk {
  i32 token;
  i32 unit;
  i32 first;   // its first piece
  i32 pieces;  // how many the token sees
  i32 newest;  // last key that the token sees
  i32 page;    // of piece `lane`, -1: none
};

__device__ __forceinline__ uint4 shared16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
${entry}(const T* q, const T* keys, const T* values, const i32* pos, const i32* seq, const i32* pages, ${sinks}T* y, f32* scratch,
         u32* counters, i32 n, i32 sequences, i64 row_pages) {
  extern __shared__ uint4 shared[];
  const u32 rings = (shared_address(shared) + 127) & ~127u;  // [WARPS][STAGES][keys, values]; copies lie like their source within 128 bytes
  f32* const slots = (f32*)(shared + (WARPS * STAGES * 2 * HALF + 128) / 16);  // [SLOTS][HEADS][ROW]
  f32* const stats = slots + SLOTS * HEADS * ROW;                 // [SLOTS][HEADS][2]
  i32* const before = (i32*)(stats + SLOTS * HEADS * 2);          // [LISTED + 1], chunks of the tokens before, for one unit
  i32* const newest_of = before + LISTED + 1;                     // [LISTED], last key that a token sees, -1: none
  i32* const sequence_of = newest_of + LISTED;                    // [LISTED]
  __shared__ u64 full[WARPS][STAGES];
  __shared__ u64 ready[SLOTS];
  __shared__ u64 empty[SLOTS];
  __shared__ i32 warp_sum[WARPS + FOLDERS];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  let_successors_start();
  if (!EARLY) wait_for_predecessors();

  for (int i = (int)threadIdx.x; i < WARPS * STAGES + 2 * SLOTS; i += THREADS) {
    u64* const signal = i < WARPS * STAGES ? &full[0][0] + i : i < WARPS * STAGES + SLOTS ? ready + (i - WARPS * STAGES) : empty + (i - WARPS * STAGES - SLOTS);
    signal_init(shared_address(signal), i < WARPS * STAGES + SLOTS ? 1 : FOLDERS);
    signal_publish();
  }
  if (threadIdx.x == 0) before[0] = 0;
  // The list. A token without keys has no chunks.
  i32 through_all = 0;
#pragma unroll 1
  for (i32 t0 = 0; t0 < n; t0 += THREADS) {
    const i32 t = t0 + (i32)threadIdx.x;
    i32 chunks = 0;
    if (t < n) {
      const i32 s = seq[t];
      const i32 p = pos[t];
      const i64 mapped = row_pages * PAGE - 1;
      const i32 newest = s < 0 || s >= sequences || p < 0 ? -1 : p < mapped ? p : (i32)mapped;
      newest_of[t] = newest;
      sequence_of[t] = s;
      chunks = newest < 0 ? 0 : newest / 128 + 1;
    }
    const i32 through = sum_through(chunks, warp_sum, through_all);
    if (t < n) before[t + 1] = through;
  }
  __syncthreads();
  const i32 total = through_all * UNITS;
  const i32 share = total / (i32)gridDim.x;
  const i32 larger = total % (i32)gridDim.x;  // blocks that take one more
  auto start_of = [&](i32 block) -> i32 { return block * share + (block < larger ? block : larger); };
  auto block_of = [&](i32 x) -> i32 { return x < larger * (share + 1) ? x / (share + 1) : larger + (x - larger * (share + 1)) / share; };
  auto find = [&](i32 x) -> Place {  // all lanes of a warp look for the last token whose chunks begin at x or before
    constexpr int STEP = LISTED / 32;
    auto begins = [&](i32 t) -> bool { return t < n && before[t] * UNITS <= x; };
    i32 token = (__popc(__ballot_sync(0xffffffffu, begins(lane * STEP))) - 1) * STEP;
    token += __popc(__ballot_sync(0xffffffffu, lane < STEP && begins(token + lane))) - 1;
    const i32 chunks = before[token + 1] - before[token];
    const i32 rest = x - before[token] * UNITS;
    return {token, rest / chunks, rest % chunks, chunks};
  };
  const i32 start = start_of((i32)blockIdx.x);
  const i32 count = start_of((i32)blockIdx.x + 1) - start;

  if (warp < WARPS) {
    // Multiplies.
    auto open = [&](i32 j) -> Chunk {
      Chunk w = {0, 0, 0, 0, -1, -1};
      if (j >= count) return w;
      const Place at = find(start + j);
      w.token = at.token;
      w.unit = at.unit;
      w.first = at.at * 4;
      w.newest = newest_of[at.token];
      const i32 left = w.newest / 32 + 1 - w.first;
      w.pieces = left < 4 ? left : 4;
      if (lane < w.pieces) w.page = pages[sequence_of[at.token] * row_pages + (w.first + lane) * 32 / PAGE];
      return w;
    };
    const u32 ring = rings + warp * STAGES * 2 * HALF;
    const u32 signals = shared_address(full[warp]);
    i32 asked = 0;  // pieces so far
    i32 used = 0;
    i32 stage_asked = 0;
    i32 stage = 0;
    u32 parity = 0;
    auto rows_of = [&](const Chunk& w, i32 piece) -> i32 {
      const i32 rows = w.newest + 1 - (w.first + piece) * 32;
      return rows < 32 ? rows : 32;
    };
    auto ask = [&](const Chunk& w, i32 piece) {
      const i32 page = __shfl_sync(0xffffffffu, w.page, piece);
      if (lane == 0) {
        const u32 to = ring + stage_asked * 2 * HALF;
        const u32 signal = signals + stage_asked * 8;
        if (page < 0) {
          signal_arrive(signal);
        } else {
          const u32 bytes = (u32)rows_of(w, piece) * DIM * 2;
          const i64 from = ((i64)(page * KV_HEADS + w.unit / SETS) * PAGE + (w.first + piece) * 32 % PAGE) * DIM;
          signal_expect(signal, 2 * bytes);
          fetch_once(to, keys + from, bytes, signal);
          fetch_once(to + HALF, values + from, bytes, signal);
        }
      }
      asked++;
      stage_asked = stage_asked + 1 == STAGES ? 0 : stage_asked + 1;
    };
    auto query_at = [&](const Chunk& w, int d) -> uint4 {
      const int head = w.unit % SETS * HEADS + g;
      const bool there = g < HEADS && head < GROUP && (DIM % 32 == 0 || 32 * d + 8 * c < DIM);
      const T* const from = q + (((i64)w.token * KV_HEADS + w.unit / SETS) * GROUP + head) * DIM;
      return there ? load16(from + 32 * d + 8 * c) : make_uint4(0, 0, 0, 0);
    };

    Chunk now = open(warp);
    i32 ahead = 0;          // next piece to ask for
    bool in_next = false;   // of the next chunk
    if (EARLY) {
      // Keys of positions that no token of this step has were written by earlier steps.
      i32 fresh = now.newest;
      const i32 sequence = sequence_of[now.token];
#pragma unroll 1
      for (i32 t = lane; t < n; t += 32) {
        if (sequence_of[t] == sequence && newest_of[t] < fresh) fresh = newest_of[t];
      }
      fresh = (i32)(__reduce_min_sync(0xffffffffu, (u32)fresh ^ 0x80000000u) ^ 0x80000000u);
      while (ahead < STAGES && ahead < now.pieces && (now.first + ahead + 1) * 32 <= fresh) ask(now, ahead++);
    }
    Chunk next = open(warp + WARPS);
    if (EARLY) wait_for_predecessors();
    asm volatile("fence.proxy.async;" ::: "memory");
    uint4 query[QC];
    uint4 query_next[QC];
#pragma unroll
    for (int d = 0; d < QC; d++) query[d] = query_at(now, d);
    auto ask_ahead = [&]() {
      while (asked < used + STAGES) {
        if (!in_next && ahead >= now.pieces) {
          in_next = true;
          ahead = 0;
        }
        if (in_next && ahead >= next.pieces) break;
        if (in_next) ask(next, ahead);
        else ask(now, ahead);
        ahead++;
      }
    };
    ask_ahead();
#pragma unroll 1
    for (i32 j = warp; j < count; j += WARPS) {
#pragma unroll
      for (int d = 0; d < QC; d++) query_next[d] = query_at(next, d);
      // Sums of the chunk. For heads 2c and 2c + 1: element 8 g + 2 i + h in out[i][2 h + e].
      f32 most[2] = {-INF, -INF};
      f32 sum[2] = {0.0f, 0.0f};
      f32 out[4][4] = {};
#pragma unroll 1
      for (i32 piece = 0; piece < now.pieces; piece++) {
        const bool there = __shfl_sync(0xffffffffu, now.page, piece) >= 0;
        const i32 rows = rows_of(now, piece);
        const u32 at = ring + stage * 2 * HALF;
        signal_wait(signals + stage * 8, parity);
        f32 z[2][4] = {};
        uint4 v[8];
        if (there) {
#pragma unroll
          for (int d = 0; d < QC; d++) {
            const bool inside = DIM % 32 == 0 || 32 * d + 8 * c < DIM;
            uint4 k[4];
#pragma unroll
            for (int i = 0; i < 4; i++) k[i] = inside ? shared16(at + (8 * i + g) * DIM * 2 + (32 * d + 8 * c) * 2) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int u = 0; u < 2; u++) mma_k32<T>(z[u], k[2 * u], k[2 * u + 1], query[d]);
          }
          // Behind the last row that the token sees the ring holds anything; those logits are masked and that row stands for them.
#pragma unroll
          for (int i = 0; i < 8; i++) {
            const i32 row = key_of_row(i, c);
            v[i] = DIM == 64 || 8 * g < DIM ? shared16(at + HALF + (row < rows ? row : rows - 1) * DIM * 2 + 8 * g * 2) : make_uint4(0, 0, 0, 0);
          }
        }
        // The stage is free.
        __syncwarp();
        used++;
        stage++;
        if (stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
        ask_ahead();
        if (!there) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            f32& logit = z[i >> 1][2 * (i & 1) + e];
            logit = 8 * i + g < rows ? __fmul_rn(logit, ${scale}) : -INF;
          }
        }
        u32 p[2][2];
        f32 keep[2];
        f32 gain[2];
        fold_logits<T>(z, most, sum, p, keep, gain);
        fold_values<T>(out, v, p, keep, gain);
      }
      const i32 slot = j % SLOTS;
      if (j >= SLOTS) signal_wait(shared_address(empty + slot), (u32)(j / SLOTS - 1) & 1);
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (2 * c + e >= HEADS) continue;
        const int head = slot * HEADS + 2 * c + e;
        if (g == 0) *(Pack<f32, 2>*)(stats + 2 * head) = {most[e], sum[e]};
        if (DIM != 64 && 8 * g >= DIM) continue;
        *(Pack<f32, 4>*)(slots + head * ROW + 8 * g) = {out[0][e], out[0][2 + e], out[1][e], out[1][2 + e]};
        *(Pack<f32, 4>*)(slots + head * ROW + 8 * g + 4) = {out[2][e], out[2][2 + e], out[3][e], out[3][2 + e]};
      }
      __syncwarp();
      if (lane == 0) signal_arrive(shared_address(ready + slot));
      now = next;
      if (!in_next) ahead = 0;
      in_next = false;
#pragma unroll
      for (int d = 0; d < QC; d++) query[d] = query_next[d];
      next = open(j + 2 * WARPS);
      ask_ahead();
    }
    return;
  }

  // Folds, and writes the zeros of tokens without keys.
  const int folder = warp - WARPS;
  auto four_of = [&](int i) -> int { return folder * OWN_FOURS + lane + 32 * i; };
  auto there = [&](int i) -> bool {
    const bool own = OWN_FOURS % 32 == 0 || lane + 32 * i < OWN_FOURS;
    return own && (HEADS % FOLDERS == 0 || four_of(i) < HEADS * DIM / 4);
  };
  if (EARLY) wait_for_predecessors();
  for (i32 t = (i32)blockIdx.x; folder == 0 && t < n; t += (i32)gridDim.x) {
    if (newest_of[t] >= 0) continue;
    constexpr int RESULT = KV_HEADS * GROUP * DIM;
    for (int i = 8 * lane; i < RESULT; i += 256) *(uint4*)(y + (i64)t * RESULT + i) = make_uint4(0, 0, 0, 0);
  }
  const i32 room = (i32)(row_pages * PAGE / 2048) + 13;  // nodes that a part may have
  // Where a part of a token and unit, chunks begin .. end - 1 of `chunks`, lies in memory: that of the block's first is in front of its last one's.
  auto part_at = [&](i32 block, i32 x) -> f32* { return scratch + (i64)(2 * block + (x > start_of(block) ? 1 : 0)) * room * PART; };
  // Chunks that node `at` of a part stands for: a run or quad that is all in the part is folded.
  auto span = [&](i32 at, i32 begin, i32 end, i32 chunks) -> i32 {
    if ((at & ~15) >= begin && ((at | 15) < end || end == chunks)) return 16;
    return (at & ~3) >= begin && ((at | 3) < end || end == chunks) ? 4 : 1;
  };
  Fold quad[TURNS];
  Fold run[TURNS];
  Fold result[TURNS];
  auto clear = [&](Fold (&f)[TURNS]) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) f[i] = nothing();
  };
  auto into = [&](Fold (&f)[TURNS], const Fold (&h)[TURNS]) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) merge(f[i], h[i]);
  };
  auto store = [&](f32* to, const Fold (&f)[TURNS]) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int four = four_of(i);
      if (!there(i)) continue;
      *(Pack<f32, 4>*)(to + 4 * four) = f[i].x;
      if (four % (DIM / 4) == 0) *(Pack<f32, 2>*)(to + HEADS * DIM + 2 * (four / (DIM / 4))) = {f[i].most, f[i].sum};
    }
  };
  auto load = [&](Fold (&f)[TURNS], const f32* from) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int four = there(i) ? four_of(i) : 0;
      const float4 x = __ldcg((const float4*)(from + 4 * four));
      const float2 stat = __ldcg((const float2*)(from + HEADS * DIM + 2 * (four / (DIM / 4))));
      f[i] = {stat.x, stat.y, {{x.x, x.y, x.z, x.w}}};
    }
  };
  Place at = count > 0 ? find(start) : Place{0, 0, 0, 1};
#pragma unroll 1
  for (i32 j = 0; j < count;) {
    // The part of a token and unit that is in this block's stretch.
    const i32 begin = at.at;
    const i32 end = at.chunks - begin < count - j ? at.chunks : begin + count - j;
    const bool head = begin == 0;  // a part that is folded as it comes
    const bool whole = head && end == at.chunks;
    const i32 from = start + j - begin;  // its first chunk in the list
    const i32 token = at.token;
    const i32 unit = at.unit;
    ${sink_early}
    f32* to = part_at((i32)blockIdx.x, start + j);
    clear(quad);
    clear(run);
    clear(result);
#pragma unroll 1
    for (i32 chunk = begin; chunk < end; chunk++, j++) {
      const i32 slot = j % SLOTS;
      signal_wait(shared_address(ready + slot), (u32)(j / SLOTS) & 1);
      Fold own[TURNS];
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int four = there(i) ? four_of(i) : 0;
        const int row = slot * HEADS + four / (DIM / 4);
        const Pack<f32, 2> stat = *(const Pack<f32, 2>*)(stats + 2 * row);
        own[i] = {stat.at[0], stat.at[1], *(const Pack<f32, 4>*)(slots + row * ROW + four % (DIM / 4) * 4)};
      }
      __syncwarp();
      if (lane == 0) signal_arrive(shared_address(empty + slot));
      const i32 node = head ? 16 : span(chunk, begin, end, at.chunks);
      if (node == 1) {
        store(to, own);
        to += PART;
        continue;
      }
      into(quad, own);
      if ((chunk & 3) != 3 && chunk + 1 < at.chunks) continue;
      if (node == 4) {
        store(to, quad);
        to += PART;
        clear(quad);
        continue;
      }
      into(run, quad);
      clear(quad);
      if ((chunk & 15) != 15 && chunk + 1 < at.chunks) continue;
      if (head) {
        into(result, run);
      } else {
        store(to, run);
        to += PART;
      }
      clear(run);
    }
    bool last = whole;
    if (!whole) {
      const i32 first_block = block_of(from);
      const i32 last_block = block_of(from + at.chunks - 1);
      u32* const counter = counters + first_block * FOLDERS + folder;
      const u32 parts = (u32)(last_block - first_block + 1);
      f32* const state = part_at(first_block, from);
      if (head) {
        // The others began with their parts, so they are most often there already.
        last = __shfl_sync(0xffffffffu, *(volatile u32*)counter, 0) == parts - 1;
        if (last) {
          fence_device();
          if (lane == 0) *counter = 0;
        } else {
          store(state, quad);
          store(state + PART, run);
          store(state + 2 * PART, result);
          last = last_warp_of(counter, parts);
        }
      } else {
        last = last_warp_of(counter, parts);
        if (last) {
          load(quad, state);
          load(run, state + PART);
          load(result, state + 2 * PART);
        }
      }
#pragma unroll 1
      for (i32 block = first_block + 1; last && block <= last_block; block++) {
        const i32 low = start_of(block) - from;
        const i32 high = start_of(block + 1) - from < at.chunks ? start_of(block + 1) - from : at.chunks;
        const f32* node = part_at(block, start_of(block));
        // Some nodes are read at a time.
#pragma unroll 1
        for (i32 chunk = low; chunk < high; node += READ * PART) {
          Fold held[READ][TURNS];
          i32 there_to = chunk;
#pragma unroll
          for (int s = 0; s < READ; s++) {
            if (there_to < high) load(held[s], node + s * PART);
            else clear(held[s]);
            there_to = (there_to | (span(there_to, low, high, at.chunks) - 1)) + 1;
          }
#pragma unroll
          for (int s = 0; s < READ; s++) {
            if (chunk >= high) continue;
            const i32 width = span(chunk, low, high, at.chunks);
            if (width == 16) into(result, held[s]);
            if (width == 4) into(run, held[s]);
            if (width == 1) into(quad, held[s]);
            chunk = (chunk | (width - 1)) + 1;
            const bool done = chunk >= at.chunks;
            if (width == 1 && (done || (chunk & 3) == 0)) {
              into(run, quad);
              clear(quad);
            }
            if (width < 16 && (done || (chunk & 15) == 0)) {
              into(result, run);
              clear(run);
            }
          }
        }
      }
    }
    if (last) {
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int four = four_of(i);
        if (!there(i)) continue;
        const int head = unit % SETS * HEADS + four / (DIM / 4);
        if (SETS > 1 && head >= GROUP) continue;
        const f32 most = result[i].most;
        f32 sum = result[i].sum;
        f32 factor = 1.0f;
        ${sink}
        factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
        T* const row = y + (((i64)token * KV_HEADS + unit / SETS) * GROUP + head) * DIM + four % (DIM / 4) * 4;
        *(Pack<u32, 2>*)row = scaled<T>(result[i].x, factor);
      }
    }
    // The next token and unit.
    at.at = 0;
    at.unit++;
    if (at.unit < UNITS) continue;
    at.unit = 0;
    do {
      at.token++;
      at.chunks = at.token < n ? before[at.token + 1] - before[at.token] : 1;
    } while (at.chunks == 0);
  }
}
