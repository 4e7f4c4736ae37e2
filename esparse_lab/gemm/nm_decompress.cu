// A compressed N:M weight in full again, a word of eight columns a thread. The head of nm_linear.cu
// says what a word is; KEPT is set as there.

#if KEPT == 4
typedef unsigned long long Kept;
#else
typedef unsigned int Kept;
#endif

extern "C" __global__ void nm_decompress_kernel(const Kept* values, const unsigned char* bits,
                                                uint4* weight, long long words) {
  long long word = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (word >= words) return;
  Kept left = values[word];
  unsigned kept = bits[word], pairs[4];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    pairs[pair] = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bool here = kept >> (2 * pair + half) & 1;
      if (here) {
        pairs[pair] |= static_cast<unsigned>(left & 0xFFFF) << 16 * half;
        left >>= 16;
      }
    }
  }
  weight[word] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
