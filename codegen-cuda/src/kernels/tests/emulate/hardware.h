
// Warpgroup multiplies and copies of boxes. Operands in shared memory are rows of 128 bytes, 16-byte run c of row r at place c ^ (r % 8); rows start at
// multiples of 1024 bytes, so the place follows from the address. Multiplies are made as late as may be, when they are waited for: memory or registers of theirs
// that are written before have the wrong contents then, and sums that are read before are not there.
static const char* emu_swizzled(uintptr_t at) { return (const char*)(at ^ (at >> 7 & 7) << 4); }
template <bool BF> static double emu_element(uintptr_t at) {
  uint16_t bits;
  memcpy(&bits, emu_swizzled(at), 2);
  return emu_half(BF, bits, 0);
}
// Element (k, n) of the right operand: rows are columns of the product, or lie across and are elements of K, 64 columns each.
template <bool BF, bool ACROSS> static double emu_right(uint64_t b, int k, int n) {
  const uintptr_t at = (uintptr_t)(uint32_t)b << 4;
  if (!ACROSS) return emu_element<BF>(at + n * 128 + k * 2);
  return emu_element<BF>(at + (uintptr_t)(b >> 32) * 16 * (n / 64) + k * 128 + n % 64 * 2);
}
template <int N, bool BF, bool ACROSS> static void emu_product(float (&d)[N / 2], const double (&a)[2][16], uint64_t b, bool keep) {
  const int c = own_lane() & 3;
  for (int j = 0; j < N / 8; j++) {
    for (int e = 0; e < 2; e++) {
      double right[16];
      for (int k = 0; k < 16; k++) right[k] = emu_right<BF, ACROSS>(b, k, 8 * j + 2 * c + e);
      for (int r = 0; r < 2; r++) {
        float& sum = d[4 * j + 2 * r + e];
        double terms[17] = {keep ? sum : 0.0f};
        for (int k = 0; k < 16; k++) terms[k + 1] = a[r][k] * right[k];
        sum = emu_sum(terms, 17);
      }
    }
  }
}
// What a thread has issued: batches, and the one that is not committed yet.
struct Issued { std::vector<std::vector<std::function<void()>>> batches; std::vector<std::function<void()>> open; };
static std::map<unsigned, Issued> issued;
static Issued& own_issued() { return issued[blockIdx.x << 11 | threadIdx.x]; }
static void emu_multiply_commit() {
  Issued& mine = own_issued();
  mine.batches.push_back(std::move(mine.open));
  mine.open.clear();
}
static void emu_multiply_wait(size_t pending) {
  for (;;) {
    Issued& mine = own_issued();
    if (mine.batches.size() <= pending) {
      __syncwarp();  // a lane that goes on says for its warp that operands have been read
      return;
    }
    // Now and then others get far ahead meanwhile.
    copy_dice = copy_dice * 1664525u + 1013904223u;
    const int rounds = own_lane() == 0 && copy_dice >> 29 == 0 ? 300 : 0;
    for (int i = 0; i < rounds; i++) {
      emu_some_copy();
      yield_fiber();
    }
    const auto batch = std::move(mine.batches.front());
    mine.batches.erase(mine.batches.begin());
    for (const auto& multiply : batch) multiply();
  }
}
// The left operand in registers: rows lane / 4 and that + 8 of the warp's 16.
template <int N, bool BF, bool ACROSS> static void emu_make_held(float (&d)[N / 2], const unsigned (&held)[4], uint64_t b, bool keep) {
  Warp& w = own_warp();
  const unsigned side = w.generation & 1;
  memcpy(w.matrix[side][own_lane()], held, sizeof held);
  meet(w);
  double a[2][16];
  for (int r = 0; r < 2; r++) {
    for (int k = 0; k < 16; k++) a[r][k] = emu_half(BF, w.matrix[side][(own_lane() & ~3) + (k & 7) / 2][r + 2 * (k >> 3)], k & 1);
  }
  emu_product<N, BF, ACROSS>(d, a, b, keep);
}
// In shared memory: 64 rows, 16 of each warp of the group.
template <int N, bool BF> static void emu_make(float (&d)[N / 2], uint64_t left, uint64_t b, bool keep) {
  __syncwarp();
  double a[2][16];
  for (int r = 0; r < 2; r++) {
    const int row = (int)(threadIdx.x / 32 % 4) * 16 + own_lane() / 4 + 8 * r;
    for (int k = 0; k < 16; k++) a[r][k] = emu_element<BF>(((uintptr_t)(uint32_t)left << 4) + row * 128 + k * 2);
  }
  emu_product<N, BF, false>(d, a, b, keep);
}
template <int N, bool BF, bool ACROSS> static void emu_multiply_held(float (&d)[N / 2], const unsigned (&held)[4], uint64_t b, bool keep) {
  own_issued().open.push_back([&d, &held, b, keep] { emu_make_held<N, BF, ACROSS>(d, held, b, keep); });
}
template <int N, bool BF> static void emu_multiply(float (&d)[N / 2], uint64_t left, uint64_t b, bool keep) {
  own_issued().open.push_back([&d, left, b, keep] { emu_make<N, BF>(d, left, b, keep); });
}

// A matrix of 2-byte elements as kernels get it, and a box of it: 64 columns, zeros outside.
struct Boxes { const uint16_t* base; int64_t rows, columns, box_rows; };
template <class Map> static void emu_fetch_box_at(unsigned rank, unsigned to, const Map* map, int column, int row, unsigned signal) {
  const Boxes of = *(const Boxes*)map;
  if ((to & 1023) != 0 || of.columns % 8 != 0 || of.box_rows < 1 || of.box_rows > 256) {
    fprintf(stderr, "runtime error: a box at %#x of %ld rows of a matrix of %ld columns\n", to, of.box_rows, of.columns);
    exit(3);
  }
  auto make = [=] {
    for (int64_t r = 0; r < of.box_rows; r++) {
      for (int64_t c = 0; c < 64; c++) {
        const bool inside = row + r >= 0 && row + r < of.rows && column + c >= 0 && column + c < of.columns;
        const uint16_t x = inside ? of.base[(row + r) * of.columns + column + c] : 0;
        memcpy(emu_at((unsigned)(uintptr_t)emu_swizzled(to + r * 128 + c * 2), rank), &x, 2);
      }
    }
  };
  copies.push_back({make, (unsigned)of.box_rows * 128, emu_address_in(signal, rank)});
}
template <class Map> static void emu_fetch_box(unsigned to, const Map* map, int column, int row, unsigned signal) {
  emu_fetch_box_at(running->rank, to, map, column, row, signal);
}
// To all blocks whose bit is set.
template <class Map> static void emu_fetch_box_to(unsigned to, const Map* map, int column, int row, unsigned signal, unsigned blocks) {
  for (unsigned rank = 0; rank < 16; rank++) {
    if (blocks >> rank & 1) emu_fetch_box_at(rank, to, map, column, row, signal);
  }
}
