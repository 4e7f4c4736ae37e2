// A norm whose output comes in another channel order; see gathered_norm.py, which compiles this file
// at run time.
//
// A block holds a row in shared memory while it sums it up, so that memory is read once and in
// order, and written in order: only reads of shared memory jump. Blocks go on to further rows with
// the order and the weights in registers, and have the next row on its way meanwhile.

// Set by gathered_norm.py:
//   BYTES    of a value: 4 is float32, 2 is float16, or bfloat16 with
//   BF16
//   LAYER    LayerNorm, not RMSNorm
//   GEMMA    an RMSNorm times 1 + weight, rounded once; the others round before the weight too
//   EPS      added to the mean square
//   WIDTH    channels
//   VECTOR   channels that are read at once; divides WIDTH, and rows start at multiples of it
//   THREADS  a multiple of 32

#if BYTES == 4
typedef float Value;
#else
typedef unsigned short Value;
#endif

struct alignas(BYTES * VECTOR) Piece {
  Value at[VECTOR];
};

constexpr int PIECES = WIDTH / VECTOR;
constexpr int EACH = (PIECES + THREADS - 1) / THREADS;  // that a thread takes
constexpr int WARPS = THREADS / 32;

// Instructions of the device.

extern __shared__ __align__(16) char memory[];

__device__ __forceinline__ float of_lane_across(float value, int step) {
  return __shfl_xor_sync(0xFFFFFFFF, value, step);
}

__device__ __forceinline__ float widened(Value value) {
#if BYTES == 4
  return value;
#elif BF16
  return __uint_as_float(static_cast<unsigned>(value) << 16);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
  return result;
#endif
}

__device__ __forceinline__ Value rounded(float value) {
#if BYTES == 4
  return value;
#else
  Value result;
#if BF16
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
#endif
  return result;
#endif
}

// The kernel.

__device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += of_lane_across(value, step);
  return value;
}

__device__ __forceinline__ float sum_of_block(float value, float* of_warps) {
  const int lane = threadIdx.x % 32;
  value = sum_of_lanes(value);
  if (lane == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  return sum_of_lanes(lane < WARPS ? of_warps[lane] : 0);
}

__device__ __forceinline__ void load(Piece (&to)[EACH], const Value* row) {
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int piece = i * THREADS + threadIdx.x;
    to[i] = piece < PIECES ? reinterpret_cast<const Piece*>(row)[piece] : Piece{};
  }
}

// x: [rows, stride]; index: [WIDTH]; weight and bias: [WIDTH], bias may be null; y: [rows, WIDTH].
extern "C" __global__ void __launch_bounds__(THREADS)
    gathered_norm(const Value* x, long long stride, long long rows, const long long* index,
                  const Value* weight, const Value* bias, Value* y) {
  float(*of_warps)[32] = reinterpret_cast<float(*)[32]>(memory);
  Value* held = reinterpret_cast<Value*>(of_warps + 2);
  Piece next[EACH];
  load(next, x + blockIdx.x * stride);
  int channel[EACH][VECTOR];
  float factor[EACH][VECTOR], added[EACH][VECTOR];
#pragma unroll
  for (int i = 0; i < EACH; ++i)
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
      const int place = (i * THREADS + threadIdx.x) * VECTOR + k;
      const int from = channel[i][k] = place < WIDTH ? static_cast<int>(index[place]) : 0;
      factor[i][k] = (GEMMA ? 1.0f : 0.0f) + widened(weight[from]);
      added[i][k] = LAYER && bias ? widened(bias[from]) : -0.0f;  // x + -0 is x
    }
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    Piece now[EACH];
    float sum = 0, mean = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      now[i] = next[i];
#pragma unroll
      for (int k = 0; k < VECTOR; ++k) {
        const float value = widened(now[i].at[k]);
        sum += LAYER ? value : value * value;
      }
    }
    if (row + gridDim.x < rows) load(next, x + (row + gridDim.x) * stride);
    __syncthreads();  // nobody reads the last row any more
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (const int piece = i * THREADS + threadIdx.x; piece < PIECES)
        reinterpret_cast<Piece*>(held)[piece] = now[i];
    sum = sum_of_block(sum, of_warps[0]);
    if (LAYER) {
      mean = sum * (1.0f / WIDTH);
      sum = 0;
#pragma unroll
      for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          const float off = widened(now[i].at[k]) - mean;
          if (i * THREADS + threadIdx.x < PIECES) sum += off * off;
        }
      sum = sum_of_block(sum, of_warps[1]);
    }
    const float scale = rsqrtf(sum * (1.0f / WIDTH) + static_cast<float>(EPS));
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      Piece out;
#pragma unroll
      for (int k = 0; k < VECTOR; ++k) {
        const float normal = (widened(held[channel[i][k]]) - mean) * scale;
        const float given = LAYER || GEMMA ? normal : widened(rounded(normal));
        out.at[k] = rounded(factor[i][k] * given + added[i][k]);
      }
      if (const int piece = i * THREADS + threadIdx.x; piece < PIECES)
        reinterpret_cast<Piece*>(y + row * WIDTH)[piece] = out;
    }
  }
}
