"""A CUDA kernel on the CPU: a thread of its own for each of a block, one block after the other."""

import ctypes
import hashlib
import re
import subprocess
from pathlib import Path

# What stands between these two lines of a source are instructions of the device alone.
DEVICE = re.compile(r"// Instructions of the device\.\n.*?// The kernel\.\n", re.DOTALL)
BEFORE = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
struct Place { unsigned x; };
static thread_local Place threadIdx, blockIdx;
static Place gridDim;
static std::barrier<>* everyone;
static void __syncthreads() { everyone->arrive_and_wait(); }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
"""
INSTEAD = """
alignas(16) static char memory[SHARED];
static float lanes[1024];
static float of_lane_across(float value, int step) {
  lanes[threadIdx.x] = value;
  __syncthreads();
  float found = lanes[threadIdx.x ^ step];
  __syncthreads();
  return found;
}
static float widened(Value value) {
#if BYTES == 4
  return value;
#elif BF16
  unsigned bits = static_cast<unsigned>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
#else
  _Float16 half;
  std::memcpy(&half, &value, 2);
  return half;
#endif
}
static Value rounded(float value) {
#if BYTES == 4
  return value;
#elif BF16
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
#else
  _Float16 half = value;
  Value bits;
  std::memcpy(&bits, &half, 2);
  return bits;
#endif
}
"""
AFTER = """
template <typename... Given, typename... Taken>
static void run(void (*kernel)(Taken...), unsigned blocks, Given... given) {
  gridDim.x = blocks;
  for (unsigned block = 0; block < blocks; ++block) {
    std::memset(memory, 0xFF, sizeof memory);  // not a number
    std::barrier<> here(THREADS);
    everyone = &here;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < THREADS; ++i)
      threads.emplace_back([=] {
        threadIdx.x = i, blockIdx.x = block;
        kernel((Taken)given...);
      });
    for (auto& thread : threads) thread.join();
  }
}
"""


def emulated(source: Path, name: str, constants: dict, shared: int, folder: Path):
    """A function (blocks, *arguments) that runs the kernel; its arguments are integers."""
    text, found = DEVICE.subn(lambda _: INSTEAD, source.read_text())
    assert found == 1, f"{source} has no section of the device's instructions"
    macros = "".join(f"#define {macro} {value}\n" for macro, value in constants.items())
    count = text.partition(f"{name}(")[2].partition(")")[0].count(",") + 1
    taken = ", ".join(f"long long a{i}" for i in range(count))
    given = ", ".join(f"a{i}" for i in range(count))
    entry = f'extern "C" void enter(unsigned blocks, {taken}) {{ run({name}, blocks, {given}); }}'
    text = f"{macros}#define SHARED {shared}\n{BEFORE}{text}{AFTER}{entry}\n"
    stem = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
    library = stem.with_suffix(".so")
    if not library.exists():
        stem.with_suffix(".cpp").write_text(text)
        flags = ["-std=c++20", "-O1", "-w", "-fpermissive", "-ffp-contract=off", "-pthread"]
        command = ["g++", *flags, "-shared", "-fPIC", "-o", library, stem.with_suffix(".cpp")]
        subprocess.run(command, check=True)
    enter = ctypes.CDLL(str(library)).enter
    enter.argtypes = [ctypes.c_uint, *[ctypes.c_longlong] * count]
    return enter
