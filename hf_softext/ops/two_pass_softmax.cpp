// Softmax and log-sum-exp of float32 rows in two passes over memory instead of three.
//
// M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv 2001.04438. Every e^x is
// kept as a pair (m, n) that stands for m * 2^n, so that it cannot overflow and the row's maximum
// need not be known: pass 1 adds the pairs, pass 2 computes them again and divides by the sum.
//
// Knows neither torch nor Python: one C function over plain memory. Vectors are the GNU extension
// of gcc and clang, which becomes whatever the target has.

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

// as wide as the target's registers: gcc takes wider vectors apart badly
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// pass 1 reads this many vectors before it rescales its running sum
constexpr int kGroup = 4;
// float32 sums run over so many columns, and float64 sums over these
constexpr int64_t kBlock = 4096;
// a row is cut by its length alone, so that no result depends on the threads: into parts of this
// many columns, or twice, three times as many, so that there are at most kParts
constexpr int64_t kPart = 16384;
constexpr int64_t kParts = 256;
// bytes of output from which on it is written past the caches
constexpr int64_t kStream = int64_t{1} << 25;

// the sum is exact to rounding if the row's maximum is within +-kLimit: then n has 12 bits, so that
// n * kLn2High is exact also without fused multiply-add
constexpr float kLimit = 2048;
// what is below counts as this: against a maximum above -kLimit it is 0 all the same, and -inf needs
// no case of its own
constexpr float kLow = -2500;
constexpr float kLog2e = 0x1.715476p+0f;
constexpr float kLn2High = 0x1.62ep-1f;
constexpr float kLn2Low = 0x1.0bfbe8p-15f;
// adding and subtracting it rounds to the nearest integer
constexpr float kRound = 0x1.8p23f;

struct Terms {
  Floats m, n;
};

// of a row or a piece of it: m * 2^n
struct Sum {
  double m = 0, n = -INFINITY;
};

INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE Floats splat(float v) { return v - Floats{}; }

// written so that b wins if one of them is NaN
INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// m * 2^d for integers d <= 0, rounded once where it is subnormal
INLINE Floats scale(Floats m, Floats d) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)m, (__m512)d);
#else
  // also drops a NaN, whose conversion to an integer is undefined; m holds the NaN too
  d = larger(d, splat(-190));
  const Floats too_large = (Floats)((__builtin_convertvector(d, Ints) + (127 + 64)) << 23);
  return m * too_large * 0x1p-64f;
#endif
}

// e^x = m * 2^n with m in about [0.707, 1.414]
INLINE Terms extended_exp(Floats x) {
  x = larger(splat(kLow), x);
  Floats n = x * kLog2e + kRound;
  n = n - kRound;
  Floats t = x - n * kLn2High;
  t = t - n * kLn2Low;
  // minimax on [-ln2 / 2, ln2 / 2], of XNNPACK's kernels for the paper
  Floats m = t * 0x1.0f9f9cp-7f + 0x1.573a1ap-5f;
  m = m * t + 0x1.555a80p-3f;
  m = m * t + 0x1.fffdc6p-2f;
  m = m * t + 0x1.fffff6p-1f;
  m = m * t + 1.0f;
  return {m, n};
}

Sum combine(Sum a, Sum b) {
  const double n = a.n > b.n ? a.n : b.n;
  if (n == -INFINITY) return {a.m + b.m, n};
  return {a.m * std::exp2(a.n - n) + b.m * std::exp2(b.n - n), n};
}

INLINE void add_group(Terms& sum, const float* x, float shift) {
  Terms terms[kGroup];
  Floats top = sum.n;
  for (int i = 0; i < kGroup; ++i) {
    terms[i] = extended_exp(load(x + i * kLanes) - shift);
    top = larger(top, terms[i].n);
  }
  sum.m = scale(sum.m, sum.n - top);
  // small ones first, then to the large one
  for (int i = 0; i < kGroup; ++i) terms[i].m = scale(terms[i].m, terms[i].n - top);
  sum.m += (terms[0].m + terms[1].m) + (terms[2].m + terms[3].m);
  sum.n = top;
}

Sum sum_block(const float* x, int64_t size, float shift) {
  Terms lanes{Floats{}, splat(kLow * 2)};
  int64_t i = 0;
  for (; i + kGroup * kLanes <= size; i += kGroup * kLanes) add_group(lanes, x + i, shift);
  if (i < size) {
    float rest[kGroup * kLanes];
    for (float& value : rest) value = -INFINITY;
    std::memcpy(rest, x + i, (size - i) * sizeof(float));
    add_group(lanes, rest, shift);
  }
  float top = kLow * 2;
  for (int j = 0; j < kLanes; ++j) top = lanes.n[j] > top ? lanes.n[j] : top;
  const Floats m = scale(lanes.m, lanes.n - top);
  Sum sum{0, top};
  for (int j = 0; j < kLanes; ++j) sum.m += m[j];
  return sum;
}

Sum sum_range(const float* x, int64_t size, float shift) {
  Sum sum;
  for (int64_t i = 0; i < size; i += kBlock)
    sum = combine(sum, sum_block(x + i, size - i < kBlock ? size - i : kBlock, shift));
  return sum;
}

// NaN if there is one, else the maximum; of nothing -inf
float maximum(const float* x, int64_t size) {
  Floats top = splat(-INFINITY);
  Ints nan{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats v = load(x + i);
    top = larger(v, top);
    nan |= v != v;
  }
  float result = -INFINITY;
  for (int j = 0; j < kLanes; ++j) {
    if (nan[j]) return NAN;
    if (top[j] > result) result = top[j];
  }
  for (; i < size; ++i) {
    if (x[i] != x[i]) return NAN;
    if (x[i] > result) result = x[i];
  }
  return result;
}

INLINE Floats probability(Floats x, float shift, float exponent, float factor) {
  const Terms e = extended_exp(x - shift);
  return scale(e.m * factor, e.n - exponent);
}

INLINE void store_past_caches(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(p, (__m256)v);
#else
  std::memcpy(p, &v, sizeof v);
#endif
}

void write_range(const float* x, float* y, int64_t size, float shift, Sum sum, bool stream) {
  const float exponent = static_cast<float>(sum.n);
  const float factor = static_cast<float>(1 / sum.m);
  const auto few = [&](int64_t i, int64_t count) {
    float part[kLanes] = {};
    std::memcpy(part, x + i, count * sizeof(float));
    const Floats v = probability(load(part), shift, exponent, factor);
    std::memcpy(y + i, &v, count * sizeof(float));
  };
  int64_t i = 0;
  if (stream) {
    const int64_t past = (reinterpret_cast<uintptr_t>(y) / sizeof(float)) % kLanes;
    int64_t head = past ? kLanes - past : 0;
    if (head > size) head = size;
    if (head) few(0, head);
    for (i = head; i + kLanes <= size; i += kLanes)
      store_past_caches(y + i, probability(load(x + i), shift, exponent, factor));
#if defined(__AVX__)
    _mm_sfence();
#endif
  } else {
    for (; i + kLanes <= size; i += kLanes) {
      const Floats v = probability(load(x + i), shift, exponent, factor);
      std::memcpy(y + i, &v, sizeof v);
    }
  }
  if (i < size) few(i, size - i);
}

// torch_parallel_for of torch's stable C interface
using Parallel = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                             void (*body)(int64_t, int64_t, void*), void* context);

template <class Body>
void run(Parallel parallel, int64_t count, int64_t grain, Body body) {
  if (parallel == nullptr) return body(0, count);
  parallel(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<Body*>(context))(begin, end);
      },
      &body);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Row {
  const float* x;
  float* y;
  float* logsumexp;
  int64_t size;
  bool stream;
  Parallel parallel;

  int64_t part() const { return divide_up(size, kParts * kPart) * kPart; }

  int64_t parts() const { return size ? divide_up(size, part()) : 0; }

  template <class Body>
  void each_part(Body body) const {
    const int64_t length = part();
    run(parallel, parts(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = i * length;
        body(i, start, size - start < length ? size - start : length);
      }
    });
  }

  Sum sum(float shift) const {
    Sum sums[kParts];
    each_part([&](int64_t i, int64_t start, int64_t length) {
      sums[i] = sum_range(x + start, length, shift);
    });
    Sum total;
    for (int64_t i = 0; i < parts(); ++i) total = combine(total, sums[i]);
    return total;
  }

  void run_both() const {
    float shift = 0;
    Sum total = sum(shift);
    const bool exact =
        std::isfinite(total.m) && std::fabs(total.n) < static_cast<double>(kLimit) * kLog2e;
    if (!exact) {
      // huge, infinite or NaN: three passes, as everyone does
      shift = maximum(x, size);
      if (!std::isfinite(shift)) {
        if (logsumexp) *logsumexp = shift;
        for (int64_t i = 0; y && i < size; ++i) y[i] = NAN;
        return;
      }
      total = sum(shift);
    }
    if (logsumexp)
      *logsumexp = static_cast<float>(shift + (std::log(total.m) + total.n * 0.6931471805599453));
    if (y)
      each_part([&](int64_t, int64_t start, int64_t length) {
        write_range(x + start, y + start, length, shift, total, stream);
      });
  }
};

}  // namespace

// x: rows x columns, contiguous. y: the same, or null. logsumexp: rows, or null.
// parallel: runs loops on that many threads, or null.
extern "C" void softext_two_pass(const float* x, float* y, float* logsumexp, int64_t rows,
                                 int64_t columns, int64_t threads, Parallel parallel) {
  const bool stream = rows * columns * static_cast<int64_t>(sizeof(float)) >= kStream;
  const auto row = [&](int64_t r, Parallel inside) {
    const int64_t at = r * columns;
    Row{x + at, y ? y + at : nullptr, logsumexp ? logsumexp + r : nullptr, columns, stream, inside}
        .run_both();
  };
  // threads share the columns where rows are long and some thread would have too few of them
  const bool uneven = rows < 4 * threads && rows % threads != 0;
  if (uneven && columns > 4 * kPart) {
    for (int64_t r = 0; r < rows; ++r) row(r, parallel);
  } else {
    const int64_t grain = 1 + 2 * kPart / (columns + 1);
    run(parallel, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) row(r, nullptr);
    });
  }
}
