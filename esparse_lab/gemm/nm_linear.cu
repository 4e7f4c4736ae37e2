// y = x W^T + bias with a compressed N:M weight and few tokens; see nm_linear.py, which compiles
// this file at run time.
//
// The tensor cores skip zeros for 2:4 alone; but with few tokens the arithmetic is nearly free and
// the bytes are not, so any N:M weight that lies compressed in memory can be faster than a dense
// one. A word is eight columns of a row: one byte of bits and KEPT values of 16 bits. The kept
// values are put in their columns in registers (PTX prmt) and multiplied densely.
//
// A sum over columns may run in any order as long as weight and x agree: lane (row g, place t) of
// a warp takes whole words of rows g and g + 8, whose eight columns are then its registers of two
// m16n8k16 products, with no exchange between lanes.
//
// Weight and x come through shared memory in stages, each a chunk of CHUNK words of all rows of a
// block, so that many bytes are on their way at any time.

// Set by nm_linear.py:
//   BF16          values are bfloat16, not float16
//   KEPT          values of a word: 2 or 4
//   WITHIN_FOUR   each half of a word keeps the same number
//   TILES         tokens / 8, rounded up to 1, 2 or 4
//   ROWS          rows of a block: 32, 64 or 128
//   ROW_BYTES     bytes of values of a row in a stage: 128 or 256
//   ALIGNED       words of a row are a multiple of this: 16, 4 or 1
//   STAGES        2 or more
//   SHARED_BYTES  of all stages

constexpr int THREADS = 256;
constexpr int WORD_BYTES = 2 * KEPT;
constexpr int CHUNK = ROW_BYTES / WORD_BYTES;
constexpr int PIECE_WORDS = 16 / WORD_BYTES;  // what a lane reads of a row at a time
constexpr int GROUPS = ROW_BYTES / 64;        // of four lanes' pieces in a row
constexpr int ROW_WARPS = ROWS / 16;
constexpr int COLUMN_WARPS = THREADS / 32 / ROW_WARPS;
constexpr int TOKENS = 8 * TILES;

// Strides in shared memory keep the lanes of a load in different banks.
constexpr int BITS_STRIDE = CHUNK > 16 ? CHUNK + 16 : CHUNK;
constexpr int SUM_STRIDE = ROWS + 4;

constexpr int BITS_AT = ROWS * ROW_BYTES;
constexpr int X_AT = BITS_AT + ROWS * BITS_STRIDE;
constexpr int STAGE_BYTES = X_AT + TOKENS * CHUNK * 16;

static_assert(GROUPS % COLUMN_WARPS == 0, "every warp takes whole groups");
static_assert(STAGES * STAGE_BYTES == SHARED_BYTES, "nm_kernels.py reckons the same");
static_assert(COLUMN_WARPS * TOKENS * SUM_STRIDE * 4 <= SHARED_BYTES,
              "the sums take the place of the stages");

typedef unsigned int Register;  // two values
struct alignas(16) Registers {
  Register at[4];
};

// Instructions of the device.

__device__ __forceinline__ Register permute(Register low, Register high, Register selector) {
  Register result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

__device__ __forceinline__ void multiply(float (&sum)[4], Register a0, Register a1, Register a2,
                                         Register a3, Register b0, Register b1) {
#if BF16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
#endif
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Copies BYTES that arrive later, or zeros where the source is not valid.
template <int BYTES>
__device__ __forceinline__ void copy_later(char* to, const char* from, bool valid) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(BYTES),
                 "r"(valid ? BYTES : 0)
                 : "memory");
}

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ float widened(unsigned short value) {
  float result;
#if BF16
  asm("mov.b32 %0, {%2, %1};" : "=f"(result) : "h"(value), "h"((unsigned short)0));
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
#endif
  return result;
}

__device__ __forceinline__ unsigned short rounded(float value) {
  unsigned short result;
#if BF16
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
#endif
  return result;
}

__device__ __forceinline__ float read_past_l1(const float* from) {
  float result;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(result) : "l"(from) : "memory");
  return result;
}

__device__ __forceinline__ unsigned one_more_arrived(unsigned* counter) {
  return atomicAdd(counter, 1u);
}

// The kernel.

// Selectors of permute for the four columns of half a word, a byte each. Values are counted from
// the front in the low half and from the back in the high half, since KEPT of them are in all. A
// column that is not kept takes the zeros of the second operand; or, where both operands hold
// values (the inner columns of 4:8), 0x88, whose sign bit marks it.
__device__ __forceinline__ Register selectors(unsigned bits, bool high) {
  Register entry = 0;
  for (int column = 0; column < 4; ++column) {
    bool two_operands = KEPT == 4 && !WITHIN_FOUR && (column >= 2) != high;
    int place = 0;
    for (int other = 0; other < 4; ++other)
      if (bits >> other & 1) place += high ? other >= column : other < column;
    if (high) place = KEPT - place;
    unsigned found = 0x10 + 0x22 * (two_operands ? place : place & 1);
    unsigned absent = two_operands ? 0x88 : 0x44;
    entry |= (bits >> column & 1 ? found : absent) << 8 * column;
  }
  return entry;
}

// The eight columns of a word from its kept values; bits are moved so that its byte starts at bit
// 2 and counts in steps of a table entry.
__device__ __forceinline__ void spread(Register (&pair)[4], const Register* values, unsigned low_at,
                                       unsigned high_at, const char* table) {
  Register low = *reinterpret_cast<const Register*>(table + low_at);
  Register high = *reinterpret_cast<const Register*>(table + 64 + high_at);
  Register first = values[0], last = values[KEPT / 2 - 1];
  pair[0] = permute(first, 0, low);
  pair[3] = permute(last, 0, high >> 16);
  if constexpr (KEPT == 4 && !WITHIN_FOUR) {
    pair[1] = permute(first, last, low >> 16) & ~permute(low, 0, 0xBBAA);
    pair[2] = permute(first, last, high) & ~permute(high, 0, 0x9988);
  } else {
    pair[1] = permute(first, 0, low >> 16);
    pair[2] = permute(last, 0, high);
  }
}

// Where a piece of 16 bytes lies in its stage.
__device__ __forceinline__ int values_at(int row, int piece) {
  return row * ROW_BYTES + (piece ^ (row & 1) << 2) * 16;
}

__device__ __forceinline__ int x_at(int token, int word) {
  int swizzle = KEPT == 2 ? (word >> 3 & 1) ^ (token & 1) << 1 : token & 1;
  return X_AT + (token * CHUNK + (word ^ swizzle)) * 16;
}

// What a block reads and writes: pointers to its first row, and how many rows are left from there.
struct Product {
  const char* x;               // [tokens, words] of 16 bytes
  const char* values;          // [rows, words] of WORD_BYTES
  const char* bits;            // [rows, words] of one byte
  const unsigned short* bias;  // [rows], or null
  unsigned short* y;           // [tokens, all rows]
  float* parts;                // [splits, tokens, all rows]
  int tokens, rows, words;
  long long all_rows;
};

// Calls body(i) for the i of this thread below COUNT.
template <int COUNT, typename Body>
__device__ __forceinline__ void share_out(Body body) {
#pragma unroll
  for (int round = 0; round < (COUNT + THREADS - 1) / THREADS; ++round) {
    int i = round * THREADS + threadIdx.x;
    if (COUNT % THREADS == 0 || i < COUNT) body(i);
  }
}

__device__ __forceinline__ void load_stage(char* stage, const Product& p, int first_word) {
  constexpr int VALUE_BYTES = ALIGNED >= 4 ? 16 : WORD_BYTES;
  constexpr int VALUE_WORDS = VALUE_BYTES / WORD_BYTES;
  constexpr int VALUE_COPIES = CHUNK / VALUE_WORDS;
  share_out<ROWS * VALUE_COPIES>([&](int i) {
    int row = i / VALUE_COPIES, word = i % VALUE_COPIES * VALUE_WORDS;
    unsigned from = (row * p.words + first_word + word) * WORD_BYTES;
    copy_later<VALUE_BYTES>(
        stage + values_at(row, word / PIECE_WORDS) + word % PIECE_WORDS * WORD_BYTES,
        p.values + from, row < p.rows && first_word + word < p.words);
  });
  constexpr int BITS_COPIES = CHUNK / ALIGNED;
  share_out<ROWS * BITS_COPIES>([&](int i) {
    int row = i / BITS_COPIES, word = i % BITS_COPIES * ALIGNED;
    unsigned from = row * p.words + first_word + word;
    bool valid = row < p.rows && first_word + word < p.words;
    char* to = stage + BITS_AT + row * BITS_STRIDE + word;
    if constexpr (ALIGNED == 1)
      *to = valid ? p.bits[from] : 0;
    else
      copy_later<ALIGNED>(to, p.bits + from, valid);
  });
  share_out<TOKENS * CHUNK>([&](int i) {
    int token = i / CHUNK, word = i % CHUNK;
    unsigned from = (token * p.words + first_word + word) * 16;
    copy_later<16>(stage + x_at(token, word), p.x + from,
                   token < p.tokens && first_word + word < p.words);
  });
}

__device__ __forceinline__ void multiply_stage(float (&sums)[TILES][4], const char* stage,
                                               const char* table) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int g = lane / 4, t = lane % 4;
  int row = warp % ROW_WARPS * 16 + g;
#pragma unroll
  for (int i = 0; i < GROUPS / COLUMN_WARPS; ++i) {
    int piece = (warp / ROW_WARPS + i * COLUMN_WARPS) * 4 + t;
    int word = piece * PIECE_WORDS;
    Registers values[2];
    unsigned even[2], odd[2];  // low and high halves of bytes of bits, times the size of an entry
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int here = row + 8 * half;
      values[half] = *reinterpret_cast<const Registers*>(stage + values_at(here, piece));
      const char* bits_at = stage + BITS_AT + here * BITS_STRIDE + word;
      unsigned bits = PIECE_WORDS == 2 ? *reinterpret_cast<const unsigned short*>(bits_at)
                                       : *reinterpret_cast<const unsigned*>(bits_at);
      even[half] = bits << 2 & 0x3C3C3C3C;
      odd[half] = bits >> 2 & 0x3C3C3C3C;
    }
#pragma unroll
    for (int unit = 0; unit < PIECE_WORDS; ++unit) {
      Register upper[4], lower[4];
      Register byte = 0x4440 + unit;
      spread(upper, values[0].at + unit * KEPT / 2, permute(even[0], 0, byte),
             permute(odd[0], 0, byte), table);
      spread(lower, values[1].at + unit * KEPT / 2, permute(even[1], 0, byte),
             permute(odd[1], 0, byte), table);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        Registers x =
            *reinterpret_cast<const Registers*>(stage + x_at(tile * 8 + g, word + unit));
        multiply(sums[tile], upper[0], lower[0], upper[1], lower[1], x.at[0], x.at[1]);
        multiply(sums[tile], upper[2], lower[2], upper[3], lower[3], x.at[2], x.at[3]);
      }
    }
  }
}

// Writes one sum to y.
__device__ __forceinline__ void finish(const Product& p, int token, int row, float sum) {
  if (p.bias) sum += widened(p.bias[row]);
  p.y[token * p.all_rows + row] = rounded(sum);
}

// One block takes ROWS rows and, of their columns, the part blockIdx.y of gridDim.y; of the blocks
// that share rows the last to end adds up their parts, in one order whoever was last.
extern "C" __global__ void __launch_bounds__(THREADS)
    nm_linear_kernel(const char* x, const char* values, const char* bits,
                     const unsigned short* bias, unsigned short* y, float* parts,
                     unsigned* arrived,  // [row blocks], zero before and after
                     long long tokens, long long rows, long long words) {
  extern __shared__ __align__(128) char stages[];
  __shared__ Register table[32];
  __shared__ bool last_to_end;
  long long first_row = static_cast<long long>(blockIdx.x) * ROWS;
  const Product p{x,
                  values + first_row * words * WORD_BYTES,
                  bits + first_row * words,
                  bias ? bias + first_row : nullptr,
                  y + first_row,
                  parts + first_row,
                  int(tokens),
                  int(rows - first_row),
                  int(words),
                  rows};
  int split = blockIdx.y, splits = gridDim.y;
  int chunks = (p.words + CHUNK - 1) / CHUNK;
  int chunk = chunks * split / splits, end = chunks * (split + 1) / splits;

#pragma unroll
  for (int ahead = 0; ahead < STAGES - 1; ++ahead) {
    if (chunk + ahead < end)
      load_stage(stages + ahead * STAGE_BYTES, p, (chunk + ahead) * CHUNK);
    end_of_stage();
  }
  if (threadIdx.x < 32) table[threadIdx.x] = selectors(threadIdx.x & 15, threadIdx.x >= 16);

  float sums[TILES][4] = {};
  int stage = 0;
  for (; chunk < end; ++chunk) {
    wait_for_all_but<STAGES - 2>();
    __syncthreads();  // all have this stage, and are done with the one before, which is filled now
    int ahead = chunk + STAGES - 1;
    if (ahead < end)
      load_stage(stages + (stage == 0 ? STAGES - 1 : stage - 1) * STAGE_BYTES, p, ahead * CHUNK);
    end_of_stage();
    multiply_stage(sums, stages + stage * STAGE_BYTES, reinterpret_cast<const char*>(table));
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  wait_for_all_but<0>();
  __syncthreads();

  float* shared_sums = reinterpret_cast<float*>(stages);  // [COLUMN_WARPS, TOKENS, SUM_STRIDE]
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int token = tile * 8 + lane % 4 * 2 + i % 2;
      int row = warp % ROW_WARPS * 16 + lane / 4 + i / 2 * 8;
      shared_sums[(warp / ROW_WARPS * TOKENS + token) * SUM_STRIDE + row] = sums[tile][i];
    }
  __syncthreads();

  share_out<TOKENS * ROWS>([&](int i) {
    int token = i / ROWS, row = i % ROWS;
    if (token >= p.tokens || row >= p.rows) return;
    float sum = 0;
#pragma unroll
    for (int part = 0; part < COLUMN_WARPS; ++part)
      sum += shared_sums[(part * TOKENS + token) * SUM_STRIDE + row];
    if (splits == 1)
      finish(p, token, row, sum);
    else
      p.parts[(split * p.tokens + token) * p.all_rows + row] = sum;
  });
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    last_to_end = one_more_arrived(arrived + blockIdx.x) == unsigned(splits - 1);
  __syncthreads();
  if (!last_to_end) return;
  __threadfence();
  share_out<TOKENS * ROWS>([&](int i) {
    int token = i / ROWS, row = i % ROWS;
    if (token >= p.tokens || row >= p.rows) return;
    float sum = 0;
#pragma unroll 4
    for (int part = 0; part < splits; ++part)
      sum += read_past_l1(p.parts + (part * p.tokens + token) * p.all_rows + row);
    finish(p, token, row, sum);
  });
  if (threadIdx.x == 0) arrived[blockIdx.x] = 0;
}
