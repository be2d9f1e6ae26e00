// ${ir}
// One block a row. The K-th greatest key is found digit by digit from the top, by counting how many keys that share the digits found
// so far have each next digit. Keys are distinct, as they end in the index, so exactly K keys are at least that one.
extern "C" __global__ void __launch_bounds__(1024, 1)
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ values, i32* __restrict__ indices, i64 n) {
  constexpr int K = ${k};
  __shared__ u32 count[256];
  __shared__ u64 keys[K];
  __shared__ Bin<u32> bin;
  __shared__ u32 taken;
  const i64 row = blockIdx.x;
  x += row * n;
  u64 found = 0;
  u32 wanted = K;  // place of the sought key among those that share the digits found
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (shift < 32 && ((n - 1) >> shift) == 0) {
      found |= 255ull << shift;  // all indices have zeros here, so all keys have ones
      continue;
    }
    if (threadIdx.x < 256) count[threadIdx.x] = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i < n; i += 1024) {
      const u64 key = order_key(to_f32(x[i]), (u32)i);
      if (((key ^ found) >> shift) < 256) atomicAdd(&count[(u32)(key >> shift) & 255u], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const Bin<u32> b = find_bin([&](u32 i) { return count[i]; }, wanted);
      if (threadIdx.x == 0) bin = b;
    }
    __syncthreads();
    found |= (u64)bin.index << shift;
    wanted = bin.left;
  }
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();
  for (i64 i = threadIdx.x; i < n; i += 1024) {
    const u64 key = order_key(to_f32(x[i]), (u32)i);
    if (key >= found) keys[atomicAdd(&taken, 1u)] = key;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < K; i += 1024) {
    const u64 key = keys[i];
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < K; j++) rank += keys[j] > key;
    const u32 index = key_index(key);
    values[row * K + rank] = x[index];
    indices[row * K + rank] = (i32)index;
  }
}
