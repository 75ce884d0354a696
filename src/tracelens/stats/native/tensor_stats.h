// Non-finite test and single-pass statistics of tensors, free of any framework.
//
// Used by the abi3 extension and by the framework observers. C++17, header only. Every
// function is thread safe, allocates nothing and never throws.
//
//   tl_has_nonfinite(data, n, dtype)             n contiguous elements
//   tl_has_nonfinite_view(view)                  any sizes and strides
//   tl_stats(view, &stats)                       counts, min, max, mean, std, l2
//   tl_first_bad(view, out, 4)                   row-major indices of the first bad elements
//
// Strides count elements, as in DLPack and torch.

#ifndef TRACELENS_TENSOR_STATS_H
#define TRACELENS_TENSOR_STATS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
#define TL_VECTORS 1
#endif

enum TlDtype {
  TL_OTHER = -1,
  TL_F32 = 0,
  TL_F64 = 1,
  TL_F16 = 2,
  TL_BF16 = 3,
  TL_C64 = 4,
  TL_C128 = 5,
  TL_I8 = 6,
  TL_I16 = 7,
  TL_I32 = 8,
  TL_I64 = 9,
  TL_U8 = 10,
  TL_BOOL = 11,
  TL_F8_E4M3FN = 12,
  TL_F8_E5M2 = 13,
};

struct TlView {
  const void* data;  // of element 0
  TlDtype dtype;
  int ndim;  // at most TL_MAX_DIMS
  const int64_t* sizes;
  const int64_t* strides;  // elements; null = row-major contiguous
};

// Of a complex tensor: counts by element (NaN if a part is NaN), the rest of its magnitudes.
struct TlStats {
  int64_t numel, nan, posinf, neginf, zero;
  int64_t finite;                   // numel - nan - posinf - neginf
  double min, max, mean, std, l2;   // of the finite elements; 0 if there is none
};

static const int TL_MAX_DIMS = 64;
static const int64_t TL_CHUNK = 16384;  // elements between two looks at the early exit
static const int64_t TL_BLOCK = 4096;   // elements summed in float before they join in double

struct TlBlock {
  double sum, square;  // of (x - pivot) and its square
  float low, high;
  int64_t zero;
};

struct TlKernels {
  bool (*nonfinite32)(const void*, int64_t);
  bool (*nonfinite64)(const void*, int64_t);
  bool (*nonfinite_f16)(const void*, int64_t);
  bool (*nonfinite_bf16)(const void*, int64_t);
  void (*block_f32)(const void*, int64_t, float, TlBlock*);
  void (*block_bf16)(const void*, int64_t, float, TlBlock*);
  void (*block_f16)(const void*, int64_t, float, TlBlock*);
  int64_t granule;  // block_* take multiples of this
};

static inline int tl_element_bytes(TlDtype dtype) {
  switch (dtype) {
    case TL_F64: case TL_C64: case TL_I64: return 8;
    case TL_F32: case TL_I32: return 4;
    case TL_F16: case TL_BF16: case TL_I16: return 2;
    case TL_C128: return 16;
    case TL_I8: case TL_U8: case TL_BOOL: case TL_F8_E4M3FN: case TL_F8_E5M2: return 1;
    default: return 0;
  }
}

// Whether elements of this type can be NaN or Inf at all.
static inline bool tl_is_floating(TlDtype dtype) {
  return (dtype >= TL_F32 && dtype <= TL_C128) || dtype == TL_F8_E4M3FN || dtype == TL_F8_E5M2;
}

#ifdef TL_VECTORS

#define TL_NS tl_base
#define TL_TARGET
#define TL_WIDTH 16
#include "tensor_kernels.inc"
#undef TL_NS
#undef TL_TARGET
#undef TL_WIDTH

#if defined(__x86_64__)
#define TL_NS tl_avx2
#define TL_TARGET __attribute__((target("avx2,fma,f16c")))
#define TL_WIDTH 32
#include "tensor_kernels.inc"
#undef TL_NS
#undef TL_TARGET
#undef TL_WIDTH

#define TL_NS tl_avx512
#define TL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#define TL_WIDTH 64
#include "tensor_kernels.inc"
#undef TL_NS
#undef TL_TARGET
#undef TL_WIDTH
#endif

static const TlKernels* tl_pick_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return &tl_avx512::kernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &tl_avx2::kernels;
#endif
  return &tl_base::kernels;
}

// Chosen once when the library is loaded; plain function pointers, so that no ifunc is needed.
static const TlKernels* const tl_kernels = tl_pick_kernels();

#else

template <class U>
static bool tl_plain_nonfinite(const void* data, int64_t n, U magnitude, U step) {
  const U* p = (const U*)data;
  U any = 0;
  for (int64_t i = 0; i < n; i++) any |= (U)((p[i] & magnitude) + step);
  return (any & (U)~magnitude) != 0;
}

#endif

static bool tl_f8_nonfinite(const void* data, int64_t n, TlDtype dtype) {
  const uint8_t* p = (const uint8_t*)data;
  const uint8_t first = dtype == TL_F8_E4M3FN ? 0x7f : 0x7c;  // e4m3fn has one NaN and no Inf
  for (int64_t i = 0; i < n; i++) {
    if ((p[i] & 0x7f) >= first) return true;
  }
  return false;
}

static inline bool tl_has_nonfinite(const void* data, int64_t n, TlDtype dtype) {
  if (n <= 0) return false;
  switch (dtype) {
#ifdef TL_VECTORS
    case TL_F32: return tl_kernels->nonfinite32(data, n);
    case TL_C64: return tl_kernels->nonfinite32(data, 2 * n);
    case TL_F64: return tl_kernels->nonfinite64(data, n);
    case TL_C128: return tl_kernels->nonfinite64(data, 2 * n);
    case TL_F16: return tl_kernels->nonfinite_f16(data, n);
    case TL_BF16: return tl_kernels->nonfinite_bf16(data, n);
#else
    case TL_F32: case TL_C64:
      return tl_plain_nonfinite<uint32_t>(data, dtype == TL_C64 ? 2 * n : n, 0x7fffffffu,
                                          0x00800000u);
    case TL_F64: case TL_C128:
      return tl_plain_nonfinite<uint64_t>(data, dtype == TL_C128 ? 2 * n : n,
                                          0x7fffffffffffffffull, 0x0010000000000000ull);
    case TL_F16: return tl_plain_nonfinite<uint16_t>(data, n, 0x7fff, 0x0400);
    case TL_BF16: return tl_plain_nonfinite<uint16_t>(data, n, 0x7fff, 0x0080);
#endif
    case TL_F8_E4M3FN: case TL_F8_E5M2: return tl_f8_nonfinite(data, n, dtype);
    default: return false;
  }
}

// ---------------------------------------------------------------- one element as a double

static inline double tl_half_value(uint16_t h) {
  uint64_t exponent = (h >> 10) & 31, mantissa = h & 1023;
  double magnitude = exponent == 0    ? ldexp((double)mantissa, -24)
                     : exponent == 31 ? (mantissa ? (double)NAN : (double)INFINITY)
                                      : ldexp((double)(mantissa | 1024), (int)exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

static inline double tl_f8_value(uint8_t b, TlDtype dtype) {
  if (dtype == TL_F8_E5M2) return tl_half_value((uint16_t)(b << 8));
  int exponent = (b >> 3) & 15, mantissa = b & 7;
  double magnitude = exponent == 15 && mantissa == 7 ? (double)NAN
                     : exponent == 0                 ? ldexp(mantissa, -9)
                                                     : ldexp(mantissa | 8, exponent - 10);
  return b & 0x80 ? -magnitude : magnitude;
}

static inline double tl_real_value(const void* data, int64_t i, TlDtype dtype) {
  switch (dtype) {
    case TL_F32: return ((const float*)data)[i];
    case TL_F64: return ((const double*)data)[i];
    case TL_F16: return tl_half_value(((const uint16_t*)data)[i]);
    case TL_BF16: {
      uint32_t bits = (uint32_t)((const uint16_t*)data)[i] << 16;
      float value;
      memcpy(&value, &bits, 4);
      return value;
    }
    case TL_I8: return ((const int8_t*)data)[i];
    case TL_I16: return ((const int16_t*)data)[i];
    case TL_I32: return ((const int32_t*)data)[i];
    case TL_I64: return (double)((const int64_t*)data)[i];
    case TL_U8: case TL_BOOL: return ((const uint8_t*)data)[i];
    case TL_F8_E4M3FN: case TL_F8_E5M2: return tl_f8_value(((const uint8_t*)data)[i], dtype);
    default: return 0.0;
  }
}

static inline double tl_value(const void* data, int64_t i, TlDtype dtype) {
  double re, im;
  if (dtype == TL_C64) {
    re = ((const float*)data)[2 * i];
    im = ((const float*)data)[2 * i + 1];
  } else if (dtype == TL_C128) {
    re = ((const double*)data)[2 * i];
    im = ((const double*)data)[2 * i + 1];
  } else {
    return tl_real_value(data, i, dtype);
  }
  // hypot(Inf, NaN) is Inf, but an element with a NaN part is to count as NaN.
  return isnan(re) || isnan(im) ? (double)NAN : hypot(re, im);
}

// ---------------------------------------------------------------- running statistics

struct TlRun {
  TlDtype dtype;
  double scale;  // a power of two that keeps squares of extreme doubles in range
  int64_t nan, posinf, neginf, zero, finite;
  double min, max, mean, m2;
};

// Joins a part's count, mean and sum of squared deviations (Chan, Golub, LeVeque 1983).
static inline void tl_join(TlRun* run, int64_t n, double mean, double m2, double lo, double hi) {
  if (n == 0) return;
  if (run->finite == 0) {
    run->min = lo;
    run->max = hi;
    run->mean = mean;
    run->m2 = m2;
  } else {
    double total = (double)run->finite + (double)n, delta = mean - run->mean;
    run->m2 += m2 + delta * delta * ((double)run->finite * (double)n / total);
    run->mean += delta * ((double)n / total);
    if (lo < run->min) run->min = lo;
    if (hi > run->max) run->max = hi;
  }
  run->finite += n;
}

// Any values, element by element in double precision, in two passes over the part.
static void tl_feed_exact(TlRun* run, const void* data, int64_t n) {
  int64_t finite = 0;
  double sum = 0, lo = 0, hi = 0;
  for (int64_t i = 0; i < n; i++) {
    double x = tl_value(data, i, run->dtype);
    if (isnan(x)) {
      run->nan++;
    } else if (isinf(x)) {
      if (x > 0) run->posinf++; else run->neginf++;
    } else {
      if (x == 0) run->zero++;
      if (finite == 0 || x < lo) lo = x;
      if (finite == 0 || x > hi) hi = x;
      sum += x * run->scale;
      finite++;
    }
  }
  if (finite == 0) return;
  double mean = sum / (double)finite, m2 = 0;
  for (int64_t i = 0; i < n; i++) {
    double x = tl_value(data, i, run->dtype);
    if (isfinite(x)) {
      double d = x * run->scale - mean;
      m2 += d * d;
    }
  }
  tl_join(run, finite, mean, m2, lo, hi);
}

#ifdef TL_VECTORS
// A part in float lanes around the running mean; false if that would not be exact enough:
// non-finite elements, squares out of float's range, or cancellation of more than four bits.
static bool tl_feed_block(TlRun* run, const void* data, int64_t n) {
  const TlKernels* k = tl_kernels;
  float pivot = (float)(run->finite ? run->mean : tl_real_value(data, n / 2, run->dtype));
  TlBlock b;
  switch (run->dtype) {
    case TL_F32: k->block_f32(data, n, pivot, &b); break;
    case TL_BF16: k->block_bf16(data, n, pivot, &b); break;
    default:
      k->block_f16(data, n, pivot, &b);
      if (b.high >= 65536.0f || b.low <= -65536.0f) return false;
  }
  if (!(b.square <= 3.0e38)) return false;
  double range = (double)b.high - (double)b.low, shift = b.sum / (double)n;
  double m2 = b.square - b.sum * shift;
  if (range > 0 && (range < 1e-15 || m2 < b.square * 0.0625)) return false;
  run->zero += b.zero;
  tl_join(run, n, (double)pivot + shift, m2 > 0 ? m2 : 0, b.low, b.high);
  return true;
}
#endif

static void tl_feed(TlRun* run, const void* data, int64_t n) {
  const int bytes = tl_element_bytes(run->dtype);
  const char* p = (const char*)data;
#ifdef TL_VECTORS
  if (run->dtype == TL_F32 || run->dtype == TL_BF16 || run->dtype == TL_F16) {
    const int64_t granule = tl_kernels->granule;
    while (n >= granule) {
      int64_t part = n < TL_BLOCK ? n / granule * granule : TL_BLOCK;
      if (!tl_feed_block(run, p, part)) tl_feed_exact(run, p, part);
      p += part * bytes;
      n -= part;
    }
  }
#endif
  for (; n > 0; n -= TL_BLOCK, p += TL_BLOCK * bytes) {
    tl_feed_exact(run, p, n < TL_BLOCK ? n : TL_BLOCK);
  }
}

// ---------------------------------------------------------------- sizes and strides

struct TlDims {
  int ndim;
  int64_t numel, repeats;  // repeats: how often an expanded (stride 0) view shows each element
  int64_t sizes[64], strides[64], offset;
};

// The elements of a view in memory order: expanded and unit dimensions dropped, negative
// strides turned round, dimensions sorted by stride and merged where they are adjacent.
static bool tl_simplify(const TlView* view, TlDims* out) {
  out->ndim = 0;
  out->numel = 1;
  out->repeats = 1;
  out->offset = 0;
  if (view->ndim < 0 || view->ndim > TL_MAX_DIMS) return false;
  int64_t contiguous = 1;
  int64_t strides[64];
  for (int d = view->ndim - 1; d >= 0; d--) {
    strides[d] = view->strides ? view->strides[d] : contiguous;
    contiguous *= view->sizes[d];
  }
  for (int d = 0; d < view->ndim; d++) {
    int64_t size = view->sizes[d], stride = strides[d];
    if (size < 0) return false;
    out->numel *= size;
    if (size <= 1) continue;
    if (stride == 0) {
      out->repeats *= size;
      continue;
    }
    if (stride < 0) {
      out->offset += stride * (size - 1);
      stride = -stride;
    }
    int at = out->ndim++;
    for (; at > 0 && out->strides[at - 1] < stride; at--) {
      out->sizes[at] = out->sizes[at - 1];
      out->strides[at] = out->strides[at - 1];
    }
    out->sizes[at] = size;
    out->strides[at] = stride;
  }
  int last = 0;
  for (int d = 1; d < out->ndim; d++) {
    if (out->strides[last] == out->strides[d] * out->sizes[d]) {
      out->sizes[last] *= out->sizes[d];
      out->strides[last] = out->strides[d];
    } else {
      last++;
      out->sizes[last] = out->sizes[d];
      out->strides[last] = out->strides[d];
    }
  }
  if (out->ndim > 0) out->ndim = last + 1;
  return true;
}

// Calls part(context, data, n) for runs of adjacent elements until one returns true.
template <class Part>
static bool tl_walk(const TlView* view, const TlDims* dims, Part part) {
  const int bytes = tl_element_bytes(view->dtype);
  if (dims->numel == 0 || bytes == 0) return false;
  const char* base = (const char*)view->data + dims->offset * bytes;
  if (dims->ndim == 0) return part(base, (int64_t)1);
  const int inner = dims->ndim - 1;
  const int64_t length = dims->sizes[inner], stride = dims->strides[inner];
  int64_t at[64] = {0};
  char buffer[4096];
  const int64_t room = (int64_t)sizeof(buffer) / bytes;
  int64_t held = 0;
  for (;;) {
    if (stride == 1 && length >= 32) {
      if (part(base, length)) return true;
    } else {
      for (int64_t i = 0; i < length; i++) {
        memcpy(buffer + held * bytes, base + i * stride * bytes, (size_t)bytes);
        if (++held == room) {
          if (part((const char*)buffer, held)) return true;
          held = 0;
        }
      }
    }
    int d = inner - 1;
    for (; d >= 0; d--) {
      base += dims->strides[d] * bytes;
      if (++at[d] < dims->sizes[d]) break;
      base -= dims->strides[d] * dims->sizes[d] * bytes;
      at[d] = 0;
    }
    if (d < 0) break;
  }
  return held > 0 && part((const char*)buffer, held);
}

static bool tl_has_nonfinite_view(const TlView* view) {
  TlDims dims;
  if (!tl_is_floating(view->dtype) || !tl_simplify(view, &dims)) return false;
  if (dims.ndim == 1 && dims.strides[0] == 1 && dims.numel > 0) {
    return tl_has_nonfinite((const char*)view->data + dims.offset * tl_element_bytes(view->dtype),
                            dims.sizes[0], view->dtype);
  }
  const TlDtype dtype = view->dtype;
  return tl_walk(view, &dims, [dtype](const char* data, int64_t n) {
    return tl_has_nonfinite(data, n, dtype);
  });
}

static void tl_run_stats(const TlView* view, const TlDims* dims, double scale, TlRun* run) {
  memset(run, 0, sizeof *run);
  run->dtype = view->dtype;
  run->scale = scale;
  tl_walk(view, dims, [run](const char* data, int64_t n) {
    tl_feed(run, data, n);
    return false;
  });
}

// Population std (divided by n, numpy's default); mean and std right to 1e-6 of the largest
// magnitude, counts exact.
static void tl_stats(const TlView* view, TlStats* out) {
  memset(out, 0, sizeof *out);
  TlDims dims;
  if (!tl_simplify(view, &dims)) return;
  TlRun run;
  tl_run_stats(view, &dims, 1.0, &run);
  double l2_square = run.m2 + run.mean * run.mean * (double)run.finite;
  const double extreme = fmax(fabs(run.min), fabs(run.max));
  if (run.finite && (!(l2_square < 1e300) || (extreme > 0 && extreme < 1e-140))) {
    tl_run_stats(view, &dims, ldexp(1.0, -ilogb(extreme) - 1 < 1000 ? -ilogb(extreme) - 1 : 1000),
                 &run);
    l2_square = run.m2 + run.mean * run.mean * (double)run.finite;
  }
  const int64_t m = dims.numel == 0 ? 0 : dims.repeats;
  out->numel = dims.numel;
  out->nan = run.nan * m;
  out->posinf = run.posinf * m;
  out->neginf = run.neginf * m;
  out->zero = run.zero * m;
  out->finite = run.finite * m;
  if (run.finite == 0) return;
  out->min = run.min;
  out->max = run.max;
  out->mean = run.mean / run.scale;
  out->std = sqrt(run.m2 / (double)run.finite) / run.scale;
  out->l2 = sqrt(l2_square) * sqrt((double)m) / run.scale;
}

// Row-major flat indices of the first non-finite elements; returns how many were written.
static int tl_first_bad(const TlView* view, int64_t* out, int wanted) {
  if (!tl_is_floating(view->dtype) || view->ndim < 0 || view->ndim > TL_MAX_DIMS) return 0;
  int64_t numel = 1, strides[64], at[64] = {0};
  for (int d = view->ndim - 1; d >= 0; d--) {
    strides[d] = view->strides ? view->strides[d] : numel;
    numel *= view->sizes[d];
  }
  const int bytes = tl_element_bytes(view->dtype);
  const char* p = (const char*)view->data;
  int found = 0;
  for (int64_t i = 0; i < numel && found < wanted; i++) {
    if (tl_has_nonfinite(p, 1, view->dtype)) out[found++] = i;
    for (int d = view->ndim - 1; d >= 0; d--) {
      p += strides[d] * bytes;
      if (++at[d] < view->sizes[d]) break;
      p -= strides[d] * view->sizes[d] * bytes;
      at[d] = 0;
    }
  }
  return found;
}

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif  // TRACELENS_TENSOR_STATS_H
