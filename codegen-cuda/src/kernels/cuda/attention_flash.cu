// ${ir}
// Prompts. Tokens and the query heads of one key head are the rows of a tile, 64 for each warpgroup: row = token * HEADS + head. A warpgroup of
// its own copies keys and values ahead of the others; these multiply queries with keys and, while that runs, the tile before with its values.
// Keys are cut at multiples of KEYS; a row takes its tiles in order into one chain of sums. A tile in which a row sees no key changes none of
// the row's bits (factors are 1, exponentials 0), so its bits depend neither on the rows beside it nor on how a prompt is cut into steps.
// Tokens may come in any order: a tile walks the keys of one run of tokens of a sequence after the other, with all other rows masked.
typedef ${type} T;
constexpr int DIM = ${dim};            // elements of a head
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};          // query heads of a key head
constexpr int PAGE = ${page};           // keys of a page
constexpr int WINDOW = ${window};         // 0: all keys
constexpr int KEYS = ${keys};           // of a tile
constexpr int GROUPS = ${groups};           // warpgroups that multiply
constexpr int SPAN = ${span};            // keys of a tile that are surely in one page
constexpr int STAGES = ${stages};           // tiles of keys and values that are held
constexpr int MANY = ${many};           // registers of a thread that multiplies
constexpr int FEW = ${few};            // and of one that copies
constexpr int HEADS = GROUP < 64 ? GROUP : 64;     // query heads in a tile
constexpr int SETS = (GROUP + HEADS - 1) / HEADS;  // sets of query heads of a key head
constexpr int OWN = 64 / HEADS;                    // tokens of a warpgroup
constexpr int SPANS = KEYS / SPAN;
constexpr int TOKENS = GROUPS * OWN;
constexpr int WORDS = (TOKENS + 31) / 32;
constexpr int HALVES = DIM / 64;                   // rows lie in shared memory in runs of 64 elements
constexpr int TILE = KEYS * DIM * 2;               // bytes of a tile of keys or values
constexpr int ROWS = 64 * DIM * 2;                 // bytes of a warpgroup's queries
constexpr int SLOTS = ${slots};                   // tiles of queries that are held
constexpr int COPIERS = 128;                       // threads that copy, 8 for 64 elements of a row
constexpr int STEP = COPIERS / 8;                  // rows they copy at a time
constexpr i32 NEVER = 0x7fffffff;

${multiply}
${multiply_across}

// A run of tokens of one sequence; each warpgroup's positions.
struct Run {
  i32 sequence;
  i32 low[GROUPS];
  i32 high[GROUPS];  // -1: no token
};
// The tokens of a tile.
struct Tokens {
  alignas(16) u32 starts[(WORDS + 3) / 4 * 4];  // tokens that begin a run; whole quads, which is how they are read
  i32 runs;
  i32 run[TOKENS];    // -1: none, the result is 0
  i32 pos[TOKENS];
  Run at[TOKENS];
};
struct Shared {
  u64 queries[SLOTS];  // signals: they have landed
  u64 done[SLOTS];     // and are no longer needed
  u64 tiles[STAGES];
  u64 tiles_done[STAGES];
  u32 there[STAGES][KEYS / 32];  // keys whose page is there
  Tokens tokens[SLOTS];
};

extern "C" __global__ void __launch_bounds__(GROUPS * 128 + COPIERS, 1)
${entry}(const T* q, const T* keys, const T* values, const i32* pos, const i32* seq, const i32* pages, ${sinks}T* y, i32 n, i32 sequences,
         i64 row_pages) {
  extern __shared__ uint4 dynamic[];
  __shared__ Shared shared;
  const u32 tiles = (shared_address(dynamic) + 1023) & ~1023u;  // [STAGES][keys, values][TILE]
  const u32 queries = tiles + STAGES * 2 * TILE;                // [SLOTS][GROUPS][ROWS]
  const int thread = (int)threadIdx.x;
  const int lane = thread & 31;
  const int group = __shfl_sync(0xffffffffu, thread / 128, 0);  // the last one copies
  const i32 token_tiles = (n + TOKENS - 1) / TOKENS;
  const i32 works = token_tiles * KV_HEADS * SETS;
  const i32 mapped = row_pages < NEVER / PAGE ? (i32)row_pages * PAGE - 1 : NEVER - 1;
  let_successors_start();
  if (thread == 0) {
    for (int i = 0; i < SLOTS; i++) {
      signal_init(shared_address(&shared.queries[i]), COPIERS + COPIERS / 32);
      signal_init(shared_address(&shared.done[i]), GROUPS * 4);
    }
    for (int i = 0; i < STAGES; i++) {
      signal_init(shared_address(&shared.tiles[i]), COPIERS + 1);
      signal_init(shared_address(&shared.tiles_done[i]), GROUPS * 4);
    }
    signal_publish();
  }
  __syncthreads();
  wait_for_predecessors();

  // The tile of this block in a round: late tokens first, as they see most keys, and back and forth, so that blocks have equal shares.
  auto work_of = [&](i32 round) -> i32 {
    const i32 place = round & 1 ? (i32)gridDim.x - 1 - (i32)blockIdx.x : (i32)blockIdx.x;
    return round * (i32)gridDim.x + place;
  };
  auto first_token = [&](i32 work) -> i32 { return (token_tiles - 1 - work / (KV_HEADS * SETS)) * TOKENS; };
  // Tiles of keys that positions low..high see.
  auto see = [&](i32 low, i32 high, i32& first, i32& last) {
    const i32 oldest = WINDOW == 0 || low < WINDOW ? 0 : low - WINDOW + 1;
    const i32 newest = high < mapped ? high : mapped;
    const bool some = high >= 0 && newest >= oldest;
    first = __shfl_sync(0xffffffffu, some ? oldest / KEYS : 0, 0);
    last = __shfl_sync(0xffffffffu, some ? newest / KEYS : -1, 0);
  };
  // Those of all warpgroups.
  auto see_run = [&](const Run& run, i32& first, i32& last, i32& newest) {
    i32 low = NEVER;
    i32 high = -1;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      low = run.low[i] < low ? run.low[i] : low;
      high = run.high[i] > high ? run.high[i] : high;
    }
    newest = high < mapped ? high : mapped;
    see(low, high, first, last);
  };

  if (group == GROUPS) {
    fewer_registers<FEW>();
    const int p = thread - GROUPS * 128;
    const int piece = p & 7;  // 8 elements of a row
    const int row = p >> 3;
    int stage = 0;
    int slot = 0;
    u32 phase = 1;
    u32 slot_phase = 1;
#pragma unroll 1
    for (i32 round = 0; round * (i32)gridDim.x < works; round++) {
      const i32 work = work_of(round);
      if (work >= works) continue;
      const int kv_head = work % KV_HEADS;
      const int head0 = work / KV_HEADS % SETS * HEADS;
      const i32 token0 = first_token(work);
      Tokens& tokens = shared.tokens[slot];
      signal_wait(shared_address(&shared.done[slot]), slot_phase);
      const u32 to_queries = queries + slot * GROUPS * ROWS + ((piece ^ (row & 7)) << 4);
#pragma unroll 1
      for (int r = row; r < GROUPS * 64; r += STEP) {
        const i32 token = token0 + r / 64 * OWN + r % 64 / HEADS;
        const int head = head0 + r % 64 % HEADS;
        const bool there = r % 64 < OWN * HEADS && token < n && head < GROUP;
        const T* const from = there ? q + (((i64)token * KV_HEADS + kv_head) * GROUP + head) * DIM + piece * 8 : q;
#pragma unroll
        for (int h = 0; h < HALVES; h++) copy16_to(to_queries + r / 64 * ROWS + h * 64 * 128 + r % 64 * 128, from + 64 * h, there);
      }
      // Finds the runs of tokens.
      auto sequence_of = [&](i32 token) -> i32 {
        const i32 s = seq[token];
        return s >= 0 && s < sequences && pos[token] >= 0 ? s : -1;
      };
#pragma unroll 1
      for (int t = p; t < WORDS * 32; t += COPIERS) {
        const i32 token = token0 + t;
        const bool there = t < TOKENS && token < n;
        const i32 sequence = there ? sequence_of(token) : -1;
        const bool starts = sequence >= 0 && (t == 0 || sequence_of(token - 1) != sequence);
        const u32 word = __ballot_sync(0xffffffffu, starts);
        if (lane == 0) tokens.starts[t / 32] = word;
        if (t >= TOKENS) continue;
        tokens.run[t] = sequence;  // for now
        tokens.pos[t] = there ? pos[token] : -1;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          tokens.at[t].low[i] = NEVER;
          tokens.at[t].high[i] = -1;
        }
      }
      barrier<COPIERS>(1);
#pragma unroll 1
      for (int t = p; t < TOKENS; t += COPIERS) {
        const i32 sequence = tokens.run[t];
        int runs = 0;
        for (int w = 0; w < t / 32; w++) runs += __popc(tokens.starts[w]);
        const int run = runs + __popc(tokens.starts[t / 32] & (2u << lane) - 1) - 1;
        if (sequence >= 0) {
          tokens.run[t] = run;
          tokens.at[run].sequence = sequence;
          atomicMin(&tokens.at[run].low[t / OWN], tokens.pos[t]);
          atomicMax(&tokens.at[run].high[t / OWN], tokens.pos[t]);
        }
        if (t == TOKENS - 1) tokens.runs = run + 1;
      }
      barrier<COPIERS>(1);
      signal_when_copied(shared_address(&shared.queries[slot]));
      if (lane == 0) signal_arrive(shared_address(&shared.queries[slot]));
      const int runs = __shfl_sync(0xffffffffu, tokens.runs, 0);
#pragma unroll 1
      for (int i = 0; i < runs; i++) {
        i32 first;
        i32 last;
        i32 newest;
        see_run(tokens.at[i], first, last, newest);
        const i32* const table = pages + tokens.at[i].sequence * row_pages;
        auto page_of = [&](i32 span) -> i32 {
          const i32 page = span * SPAN / PAGE;
          return page < row_pages ? table[page] : -1;
        };
        const i32 stop = (last + 1) * SPANS;
        i32 ahead = first <= last ? page_of(first * SPANS) : -1;
#pragma unroll 1
        for (i32 span = first * SPANS; span < stop; span++) {
          const i32 page = ahead;
          if (span + 1 < stop) ahead = page_of(span + 1);
          const int part = span % SPANS;
          if (part == 0) signal_wait(shared_address(&shared.tiles_done[stage]), phase);
          if (p < SPAN / 16) ((u16*)shared.there[stage])[part * (SPAN / 16) + p] = page < 0 ? 0 : 0xffff;
          const i64 at = (((i64)(page < 0 ? 0 : page) * KV_HEADS + kv_head) * PAGE + span * SPAN % PAGE + row) * DIM + piece * 8;
          const i32 left = page < 0 ? -1 : newest - span * SPAN - row;
          // Values of keys that nobody sees must be 0: memory there may hold anything.
          auto copy = [&](const T* from, u32 to) {
#pragma unroll
            for (int r = 0; r < SPAN; r += STEP) {
#pragma unroll
              for (int h = 0; h < HALVES; h++) copy16_to(to + h * KEYS * 128 + r * 128, from + r * DIM + 64 * h, r <= left);
            }
          };
          const u32 to = tiles + stage * 2 * TILE + part * SPAN * 128 + row * 128 + ((piece ^ (row & 7)) << 4);
          copy(keys + at, to);
          copy(values + at, to + TILE);
          if (part != SPANS - 1) continue;
          signal_when_copied(shared_address(&shared.tiles[stage]));
          __syncwarp();
          if (p == 0) signal_arrive(shared_address(&shared.tiles[stage]));
          if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
      if (++slot == SLOTS) {
        slot = 0;
        slot_phase ^= 1;
      }
    }
    copies_landed();
    return;
  }

  more_registers<MANY>();
  const int warp = (thread & 127) >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  // Sums of rows g and g + 8 of the warp: element 8 j + 2 c + e in out[4 j + 2 h + e], and logits likewise.
  f32 out[DIM / 2];
  f32 z[KEYS / 2];
  u32 weights[KEYS / 16][4];  // exponentials of the tile before, as the left operand
  f32 most[2];
  f32 sum[2];     // this lane's part
  f32 factor[2];  // of what was summed before
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++) z[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
    for (int i = 0; i < 4; i++) weights[k][i] = 0;
  }
  int stage = 0;
  int slot = 0;
  u32 phase = 0;
  u32 slot_phase = 0;
  u32 rows;  // this warpgroup's queries
  auto advance = [&]() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  };
  auto release = [&](u64& signal) {
    __syncwarp();
    if (lane == 0) signal_arrive(shared_address(&signal));
  };
  auto begin = [&]() {
    publish_to_hardware();  // what the copiers' threads have copied
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) hold(weights[k]);
    hold(z);
    hold(out);
  };
  auto multiply_keys = [&](int at) {
    const u64 a = operand_at(rows);
    const u64 b = operand_at(tiles + at * 2 * TILE);
    multiply_begin();
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) multiply(z, a + k / 4 * (64 * 128 / 16) + k % 4 * 2, b + k / 4 * (KEYS * 128 / 16) + k % 4 * 2, k != 0);
    multiply_commit();
  };
  auto multiply_values = [&](int at) {
    const u64 b = operand_across(tiles + (at * 2 + 1) * TILE, KEYS * 128);
    multiply_begin();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply_across(out, weights[k], b + k * 128, true);
    multiply_commit();
  };
  // Logits to exponentials. A row sees keys up to `newest`; `whole`: every row sees all keys whose page is there.
  auto weigh = [&](i32 key0, const i32 (&newest)[2], bool whole, int at) {
    u32 there[KEYS / 32];
    u32 all = ~0u;
#pragma unroll
    for (int i = 0; i < KEYS / 32; i++) {
      there[i] = ((volatile u32*)shared.there[at])[i];
      all &= there[i];
    }
    if (!whole || all != ~0u) {
      if (all != ~0u) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            if (there[j / 4] >> (8 * (j & 3) + 2 * c + e) & 1) continue;
            z[4 * j + e] = -INF;
            z[4 * j + 2 + e] = -INF;
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const i32 top = newest[h] - key0 - 2 * c;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const bool seen = WINDOW == 0 ? 8 * j + e <= top : (u32)(top - 8 * j - e) < (u32)WINDOW;
            if (!seen) z[4 * j + 2 * h + e] = -INF;
          }
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      f32 even = most[h];
      f32 odd = z[2 * h + 1];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        even = fmaxf(even, z[4 * j + 2 * h]);
        odd = fmaxf(odd, z[4 * j + 2 * h + 1]);
      }
      f32 top = fmaxf(even, odd);
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const f32 base = top == -INF ? 0.0f : top;
      factor[h] = exp2_fast(__fmul_rn(most[h] - base, ${scale}));
      most[h] = top;
      const f32 offset = __fmul_rn(base, ${scale});
      f32 sums[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          f32& x = z[4 * j + 2 * h + e];
          x = exp2_fast(fmaf(x, ${scale}, -offset));
          sums[e] += x;
        }
      }
      sum[h] = fmaf(sum[h], factor[h], sums[0] + sums[1]);
    }
  };
  // Once the tile before is summed: what follows has another base.
  auto carry = [&]() {
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) out[i] *= factor[i >> 1 & 1];
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
      for (int i = 0; i < 4; i++) weights[k][i] = pack2<T>(z[8 * k + 2 * i], z[8 * k + 2 * i + 1]);
    }
  };
  // Tiles that only other warpgroups need.
  auto skip = [&](i32 from, i32 to) {
#pragma unroll 1
    for (i32 tile = from; tile <= to; tile++) {
      signal_wait(shared_address(&shared.tiles[stage]), phase);
      release(shared.tiles_done[stage]);
      advance();
    }
  };

#pragma unroll 1
  for (i32 round = 0; round * (i32)gridDim.x < works; round++) {
    const i32 work = work_of(round);
    if (work >= works) continue;
    const Tokens& tokens = shared.tokens[slot];
    rows = queries + (slot * GROUPS + group) * ROWS;
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) out[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      most[h] = -INF;
      sum[h] = 0.0f;
    }
    signal_wait(shared_address(&shared.queries[slot]), slot_phase);
    const int runs = __shfl_sync(0xffffffffu, tokens.runs, 0);
#pragma unroll 1
    for (int i = 0; i < runs; i++) {
      const Run& run = tokens.at[i];
      i32 first;
      i32 last;
      i32 first_own;
      i32 last_own;
      i32 newest[2];
      see_run(run, first, last, newest[0]);
      const i32 low = run.low[group];
      const i32 high = run.high[group];
      see(low, high, first_own, last_own);
      if (last_own < first_own) {
        skip(first, last);
        continue;
      }
      skip(first, first_own - 1);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = warp * 16 + g + 8 * h;
        const int t = group * OWN + r / HEADS;
        newest[h] = r < OWN * HEADS && tokens.run[t] == i ? tokens.pos[t] : -NEVER / 2;
      }
      // Tiles that all rows see whole; rows of no run may see anything.
      i32 whole_first = NEVER;
      i32 whole_last = -1;
      if (runs == 1) {
        whole_first = WINDOW == 0 || high < WINDOW ? 0 : (high - WINDOW + KEYS) / KEYS;
        whole_last = (low + 1) / KEYS - 1;
      }
      auto is_whole = [&](i32 tile) -> bool { return tile >= whole_first && tile <= whole_last; };
      signal_wait(shared_address(&shared.tiles[stage]), phase);
      begin();
      multiply_keys(stage);
      multiply_wait<0>();
      hold(z);
      weigh(first_own * KEYS, newest, is_whole(first_own), stage);
      carry();
#pragma unroll 1
      for (i32 tile = first_own + 1; tile <= last_own; tile++) {
        const int before = stage;
        advance();
        signal_wait(shared_address(&shared.tiles[stage]), phase);
        begin();
        multiply_keys(stage);
        multiply_values(before);
        multiply_wait<1>();
        hold(z);
        weigh(tile * KEYS, newest, is_whole(tile), stage);
        hold(z);
        multiply_wait<0>();
        hold(out);
        release(shared.tiles_done[before]);
        carry();
      }
      begin();
      multiply_values(stage);
      multiply_wait<0>();
      hold(out);
      release(shared.tiles_done[stage]);
      advance();
      skip(last_own + 1, last);
    }

    // Results, by way of where the queries were.
    const int kv_head = work % KV_HEADS;
    const int head0 = work / KV_HEADS % SETS * HEADS;
    const i32 token0 = first_token(work) + group * OWN;
    barrier<128>(2 + group);  // every warp has read its queries
    const u32 stash = rows + warp * 16 * DIM * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = warp * 16 + g + 8 * h;
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      factor[h] = 1.0f;
      ${sink}
      const bool none = r < OWN * HEADS && tokens.run[group * OWN + r / HEADS] < 0;
      factor[h] = !none && most[h] != -INF && (sum[h] > 0.0f || sum[h] != sum[h]) ? factor[h] / sum[h] : 0.0f;
#pragma unroll
      for (int j = 0; j < DIM / 8; j++) {
        const u32 x = pack2<T>(out[4 * j + 2 * h] * factor[h], out[4 * j + 2 * h + 1] * factor[h]);
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(stash + (g + 8 * h) * DIM * 2 + ((j ^ g) << 4) + 4 * c), "r"(x) : "memory");
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (DIM / 8); i += 32) {
      const int own = i / (DIM / 8);
      const int j = i % (DIM / 8);
      uint4 x;
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(stash + own * DIM * 2 + ((j ^ (own & 7)) << 4))
                   : "memory");
      const int r = warp * 16 + own;
      const i32 token = token0 + r / HEADS;
      const int head = head0 + r % HEADS;
      if (r >= OWN * HEADS || token >= n || head >= GROUP) continue;
      *(uint4*)(y + (((i64)token * KV_HEADS + kv_head) * GROUP + head) * DIM + 8 * j) = x;
    }
    release(shared.done[slot]);
    if (++slot == SLOTS) {
      slot = 0;
      slot_phase ^= 1;
    }
  }
}
