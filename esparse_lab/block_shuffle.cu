// Swaps channels inside blocks until none adds kept score; see shuffle_kernel.py, which compiles
// this file at run time, and BlockShuffle in permutation.py, which does the same in PyTorch.
//
// A job is one block of channels of one matrix. A team of thread blocks, all on the device at the
// same time, takes jobs from a queue and repeats on each, with a barrier of the team after 2, 3, 4:
//   1  choose   which pairs of groups swap two channels; all thread blocks find the same
//   2  add up   for channels a of changed groups and all c: sum over rows of max(x[c], rival[a]),
//               where rival[a] is what is left of a's group to compete with a newcomer: its n-th
//               largest without a. In pieces, each for a chunk of rows: nearly all of the work
//   3  join     pieces to worth[a][c], what a's group gains with c in the place of a. The newcomer
//               a itself gains nothing: worth[a][c] = sum[a][c] - sum[a][a]
//   4  pair up  the best two channels to swap between a changed group and each other one
// Chunks depend on the matrix alone, and pieces are joined in their order: neither the size of a
// team nor the other jobs of a launch change a bit of the result.

// Set by shuffle_kernel.py:
//   KEPT, M       the pattern KEPT:M; M is a power of two up to 16
//   WIDTH         most channels of a block: 256 or 512
//   ROWS          rows of a stage in shared memory
//   LEAST_GAIN    a swap must add more than this share of its block's kept score
//   SHARED_BYTES  at least what Shared takes
//   BOARD_BYTES   at least what Board takes without its pieces

constexpr int THREADS = WIDTH;
constexpr int GROUPS = WIDTH / M;
constexpr int STRIP = 8;      // changed channels that a warp adds up for
constexpr int PASS = 64;      // that a thread block adds up for at a time
constexpr int COLUMNS = 256;  // of other channels that a warp adds up with
constexpr int MOST_CHUNKS = 32;
constexpr float NEVER = -1e38f;  // less than any gain

static_assert(GROUPS * GROUPS <= 2 * ROWS * WIDTH, "gains of pairs take the place of the stages");

struct alignas(16) Four {
  float at[4];
};

struct Job {
  const float* x;          // [rows, stride], from the block's first channel on
  long long rows, stride;  // the stride is a multiple of 4; behind the last channel are zeros
  long long channels;
  const long long* start;  // the block's part of the order of x
  long long* order;        // and where the new one goes
};

struct Shared {
  float x[2][ROWS][WIDTH];
  float rival[ROWS][PASS];
  double kept[GROUPS];
  double of_chunk[MOST_CHUNKS];
  double diagonal;
  float kept_piece[THREADS];
  float value[GROUPS];
  int partner[GROUPS];
  int members[WIDTH], before[WIDTH];  // channels of each group, now and before the last swaps
  int changed[GROUPS];
  bool taken[GROUPS];
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "shuffle_kernel.py reckons the same");

// What the thread blocks of a team share in global memory.
struct Board {
  float worth[WIDTH][WIDTH];
  float best[GROUPS][GROUPS];  // gain of the best swap between two groups
  int which[GROUPS][GROUPS];   // and which it is: place in the lower group * M + place in the other
  double kept[GROUPS];
  double kept_pieces[MOST_CHUNKS][GROUPS];
  // [pass, chunk, channel of the pass, WIDTH], as many chunks as the longest job has
  alignas(16) float pieces[1];
};

static_assert(sizeof(Board) <= BOARD_BYTES, "shuffle_kernel.py reckons the same");

struct Team {
  int rank, size;
  unsigned* arrived;
  unsigned awaited;
};

// Instructions of the device.

extern __shared__ __align__(128) char memory[];

// Copies 16 bytes that arrive later, or zeros where the source is not valid.
__device__ __forceinline__ void copy_later(float* to, const float* from, bool valid) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// What other thread blocks wrote is not looked for in the L1 cache.
template <typename T>
__device__ __forceinline__ T read(const T* from) {
  return __ldcg(from);
}

__device__ __forceinline__ unsigned take_one(unsigned* counter) { return atomicAdd(counter, 1u); }

__device__ __forceinline__ void wait_until(const unsigned* counter, unsigned least) {
  unsigned now;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  while (static_cast<int>(now - least) < 0);
}

// The kernel.

__device__ __forceinline__ void barrier(Team& team) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    team.awaited += team.size;
    take_one(team.arrived);
    wait_until(team.arrived, team.awaited);
    __threadfence();
  }
  __syncthreads();
}

__device__ __forceinline__ int rows_of_chunk(long long rows) {
  return 64 * static_cast<int>((rows + 64 * MOST_CHUNKS - 1) / (64 * MOST_CHUNKS));
}

// Changed channels of a pass, rounded up so that its warps share the rows evenly.
__device__ __forceinline__ int width_of_pass(int left) {
  int width = left > 32 ? 64 : left > 16 ? 32 : left > 8 ? 16 : 8;
  return width < M ? M : width;
}

__device__ __forceinline__ void descending(float (&v)[M]) {
#pragma unroll
  for (int round = 0; round < M; ++round)
#pragma unroll
    for (int i = round % 2; i + 1 < M; i += 2) {
      float low = fminf(v[i], v[i + 1]);
      v[i] = fmaxf(v[i], v[i + 1]);
      v[i + 1] = low;
    }
}

__device__ __forceinline__ void load_stage(const Job& job, float (*to)[WIDTH], long long first) {
#pragma unroll
  for (int i = 0; i < ROWS * WIDTH / 4 / THREADS; ++i) {
    int piece = i * THREADS + threadIdx.x;
    int row = piece / (WIDTH / 4), column = piece % (WIDTH / 4) * 4;
    bool valid = first + row < job.rows && column < job.channels;
    copy_later(&to[row][column], valid ? job.x + (first + row) * job.stride + column : job.x,
               valid);
  }
}

__device__ __forceinline__ void add_up(const Job& job, Shared& s, Board& board, const Team& team,
                                       int n_changed) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int per_chunk = rows_of_chunk(job.rows);
  const int chunks = static_cast<int>((job.rows + per_chunk - 1) / per_chunk);
  const int passes = (n_changed * M + PASS - 1) / PASS;
  for (int task = team.rank; task < passes * chunks; task += team.size) {
    const int pass = task / chunks, chunk = task % chunks;
    const int width = width_of_pass(n_changed * M - pass * PASS);
    const int strips = width / STRIP, splits = PASS / width, groups = width / M;
    const int strip = warp % (PASS / STRIP) % strips, split = warp % (PASS / STRIP) / strips;
    const int column = warp / (PASS / STRIP) * COLUMNS + 4 * lane;
    const int first_group = pass * (PASS / M);
    const int place = thread % groups;  // of the group whose rivals this thread finds
    const bool has_group = first_group + place < n_changed;
    const int* members = &s.members[has_group ? s.changed[first_group + place] * M : 0];
    const long long first = static_cast<long long>(chunk) * per_chunk;
    const long long left = job.rows - first;
    const int stages = static_cast<int>((left < per_chunk ? left : per_chunk) + ROWS - 1) / ROWS;

    float sum[STRIP][8] = {};
    float kept = 0;
    load_stage(job, s.x[0], first);
    for (int stage = 0; stage < stages; ++stage) {
      float(*x)[WIDTH] = s.x[stage % 2];
      wait_for_copies();
      __syncthreads();
      if (stage + 1 < stages) load_stage(job, s.x[(stage + 1) % 2], first + (stage + 1) * ROWS);
      for (int row = thread / groups; row < ROWS; row += THREADS / groups) {
        float own[M], sorted[M];
#pragma unroll
        for (int i = 0; i < M; ++i) own[i] = sorted[i] = has_group ? x[row][members[i]] : 0;
        descending(sorted);
#pragma unroll
        for (int i = 0; i < KEPT; ++i) kept += sorted[i];
#pragma unroll
        for (int i = 0; i < M; ++i)
          s.rival[row][place * M + i] = own[i] >= sorted[KEPT - 1] ? sorted[KEPT] : sorted[KEPT - 1];
      }
      __syncthreads();
#pragma unroll 2
      for (int row = split; row < ROWS; row += splits) {
        Four rival[2], other[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          rival[i] = *reinterpret_cast<const Four*>(&s.rival[row][strip * STRIP + 4 * i]);
          other[i] = *reinterpret_cast<const Four*>(&x[row][column + COLUMNS / 2 * i]);
        }
#pragma unroll
        for (int a = 0; a < STRIP; ++a)
#pragma unroll
          for (int c = 0; c < 8; ++c)
            sum[a][c] += fmaxf(rival[a / 4].at[a % 4], other[c / 4].at[c % 4]);
      }
    }

    s.kept_piece[thread] = kept;
    // Warps that shared the rows of a strip hand their sums down, through the place of the stages.
    for (int half = splits / 2; half > 0; half /= 2) {
      const int slot = split % half * strips + strip + warp / (PASS / STRIP) * (PASS / STRIP / 2);
      float* handed = &s.x[0][0][0] + slot * STRIP * 8 * 32 + lane;
      __syncthreads();
      if (split >= half && split < 2 * half)
#pragma unroll
        for (int i = 0; i < STRIP * 8; ++i) handed[i * 32] = sum[i / 8][i % 8];
      __syncthreads();
      if (split < half)
#pragma unroll
        for (int i = 0; i < STRIP * 8; ++i) sum[i / 8][i % 8] += handed[i * 32];
    }
    if (split == 0) {
      float* piece = board.pieces + static_cast<long long>(pass * chunks + chunk) * PASS * WIDTH +
                     strip * STRIP * WIDTH + column;
#pragma unroll
      for (int a = 0; a < STRIP; ++a)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Four four;
#pragma unroll
          for (int c = 0; c < 4; ++c) four.at[c] = sum[a][4 * i + c];
          *reinterpret_cast<Four*>(piece + a * WIDTH + COLUMNS / 2 * i) = four;
        }
    }
    __syncthreads();
    if (thread < groups && has_group) {
      double of_group = 0;
      for (int i = thread; i < THREADS; i += groups) of_group += s.kept_piece[i];
      board.kept_pieces[chunk][first_group + thread] = of_group;
    }
  }
}

__device__ __forceinline__ void join(const Job& job, Shared& s, Board& board, const Team& team,
                                     int n_changed) {
  const int thread = threadIdx.x;
  const int per_chunk = rows_of_chunk(job.rows);
  const int chunks = static_cast<int>((job.rows + per_chunk - 1) / per_chunk);
  for (int changed = team.rank; changed < n_changed * M; changed += team.size) {
    const int pass = changed / PASS;
    const int group = s.changed[changed / M], channel = s.members[group * M + changed % M];
    const float* piece = board.pieces + static_cast<long long>(pass) * chunks * PASS * WIDTH +
                         changed % PASS * WIDTH + thread;
    double sum = 0;
#pragma unroll 16
    for (int i = 0; i < chunks; ++i) sum += read(piece + i * PASS * WIDTH);
    if (thread == channel) s.diagonal = sum;
    if (changed % M == 0 && thread < chunks)
      s.of_chunk[thread] = read(&board.kept_pieces[thread][changed / M]);
    __syncthreads();
    board.worth[channel][thread] = static_cast<float>(sum - s.diagonal);
    if (thread == 0 && changed % M == 0) {
      double kept = 0;
      for (int i = 0; i < chunks; ++i) kept += s.of_chunk[i];
      board.kept[group] = kept;
    }
    __syncthreads();
  }
}

__device__ __forceinline__ void pair_up(const Job& job, Shared& s, Board& board, const Team& team,
                                        int n_changed, int groups) {
  for (int pair = team.rank * THREADS + threadIdx.x; pair < n_changed * groups;
       pair += team.size * THREADS) {
    const int one = s.changed[pair / groups], two = pair % groups;
    const int low = one < two ? one : two, high = one < two ? two : one;
    float best = NEVER;
    int which = 0;
    if (low < high)
#pragma unroll 4
      for (int i = 0; i < M * M; ++i) {
        int a = s.members[low * M + i / M], c = s.members[high * M + i % M];
        float gain = read(&board.worth[a][c]) + read(&board.worth[c][a]);
        // What fills up the last group stays in its place.
        if (gain > best && a < job.channels && c < job.channels) best = gain, which = i;
      }
    // Where both groups have changed, two threads write the same.
    board.best[low][high] = board.best[high][low] = best;
    board.which[low][high] = which;
  }
}

// Swaps best first, no group twice, and lists the groups that changed; returns how many.
__device__ __forceinline__ int choose(Shared& s, Board& board, int groups, float least,
                                      long long at_once) {
  const int thread = threadIdx.x;
  float* best = &s.x[0][0][0];
  for (int i = thread; i < groups * groups; i += THREADS)
    best[i] = read(&board.best[i / groups][i % groups]);
  if (thread < groups) s.taken[thread] = false, s.partner[thread] = thread;
  for (int i = thread; i < groups * M; i += THREADS) s.before[i] = s.members[i];
  __syncthreads();
  for (long long made = 0; at_once == 0 || made < at_once; ++made) {
    const bool looks = thread < groups && !s.taken[thread];
    if (looks && (made == 0 || s.taken[s.partner[thread]])) {
      float value = least;
      int partner = thread;  // none
#pragma unroll 8
      for (int other = 0; other < groups; ++other) {
        float gain = best[other * groups + thread];
        if (gain > value && !s.taken[other]) value = gain, partner = other;
      }
      s.value[thread] = partner == thread ? NEVER : value;
      s.partner[thread] = partner;
    }
    __syncthreads();
    bool chosen = looks && s.partner[thread] != thread;
    // Two groups that are each other's best come before any other pair of theirs.
    if (chosen) chosen = s.partner[s.partner[thread]] == thread && thread < s.partner[thread];
    if (chosen && at_once != 0)
      for (int other = 0; other < groups; ++other)
        if (!s.taken[other])
          chosen &= s.value[other] < s.value[thread] ||
                    (s.value[other] == s.value[thread] &&
                     (other >= thread || other == s.partner[thread]));
    if (!__syncthreads_or(chosen)) break;
    if (chosen) {
      const int other = s.partner[thread], which = read(&board.which[thread][other]);
      int* here = &s.members[thread * M + which / M];
      int* there = &s.members[other * M + which % M];
      int moved = *here;
      *here = *there;
      *there = moved;
      s.taken[thread] = s.taken[other] = true;
    }
    __syncthreads();
  }
  int n_changed = 0, place = 0;
  for (int i = 0; i < groups; ++i) {
    if (i == thread) place = n_changed;
    n_changed += s.taken[i];
  }
  if (thread < groups && s.taken[thread]) s.changed[place] = thread;
  __syncthreads();
  return n_changed;
}

__device__ __forceinline__ void shuffle(const Job& job, Shared& s, Board& board, Team& team,
                                        long long at_once) {
  const int thread = threadIdx.x;
  const int groups = static_cast<int>(job.channels + M - 1) / M;
  int n_changed = groups;
  for (int i = thread; i < groups * M; i += THREADS) s.members[i] = i;
  if (thread < groups) s.changed[thread] = thread;
  __syncthreads();
  double kept = -1;
  while (n_changed > 0) {
    add_up(job, s, board, team, n_changed);
    barrier(team);
    join(job, s, board, team, n_changed);
    barrier(team);
    if (thread < groups) s.kept[thread] = read(&board.kept[thread]);
    __syncthreads();
    double total = 0;
    for (int i = 0; i < groups; ++i) total += s.kept[i];
    if (total <= kept) {  // what seemed a gain was rounding: without this it might circle
      for (int i = thread; i < groups * M; i += THREADS) s.members[i] = s.before[i];
      __syncthreads();
      break;
    }
    kept = total;
    pair_up(job, s, board, team, n_changed, groups);
    barrier(team);
    const float least = static_cast<float>(LEAST_GAIN) * static_cast<float>(total);
    n_changed = choose(s, board, groups, least, at_once);
  }
  if (team.rank == 0)
    for (int i = thread; i < job.channels; i += THREADS) job.order[i] = job.start[s.members[i]];
}

// Every team has a line of its own in `counters`: who arrived at its barrier, and its job. The
// line before the first one counts the jobs taken.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    block_shuffle(const Job* jobs, long long n_jobs, unsigned* counters, char* boards,
                  long long board_bytes, long long team_size, long long at_once) {
  constexpr int LINE = 32;
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int number = static_cast<int>(blockIdx.x / team_size);
  unsigned* line = counters + (number + 1) * LINE;
  Board& board = *reinterpret_cast<Board*>(boards + number * board_bytes);
  Team team{static_cast<int>(blockIdx.x % team_size), static_cast<int>(team_size), line, 0};
  for (;;) {
    if (team.rank == 0 && threadIdx.x == 0) line[1] = take_one(counters);
    barrier(team);
    const unsigned taken = read(line + 1);
    if (taken >= n_jobs) return;
    const Job job = jobs[taken];
    shuffle(job, s, board, team, at_once);
  }
}
