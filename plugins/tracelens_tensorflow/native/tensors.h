// TensorFlow tensors as the framework-free statistics kernels see them.
#pragma once

#include "tensor_stats.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tracelens {

using tensorflow::DataType;
using tensorflow::Tensor;

inline TlDtype dtype_of(DataType dtype) {
  switch (dtype) {
    case tensorflow::DT_FLOAT: return TL_F32;
    case tensorflow::DT_DOUBLE: return TL_F64;
    case tensorflow::DT_HALF: return TL_F16;
    case tensorflow::DT_BFLOAT16: return TL_BF16;
    case tensorflow::DT_COMPLEX64: return TL_C64;
    case tensorflow::DT_COMPLEX128: return TL_C128;
    case tensorflow::DT_FLOAT8_E4M3FN: return TL_F8_E4M3FN;
    case tensorflow::DT_FLOAT8_E5M2: return TL_F8_E5M2;
    case tensorflow::DT_INT8: return TL_I8;
    case tensorflow::DT_INT16: return TL_I16;
    case tensorflow::DT_INT32: return TL_I32;
    case tensorflow::DT_INT64: return TL_I64;
    case tensorflow::DT_UINT8: return TL_U8;
    case tensorflow::DT_BOOL: return TL_BOOL;
    default: return TL_OTHER;
  }
}

inline bool is_floating(const Tensor& t) { return tl_is_floating(dtype_of(t.dtype())); }

inline bool has_nonfinite(const Tensor& t) {
  const TlDtype dtype = dtype_of(t.dtype());
  if (!tl_is_floating(dtype) || t.NumElements() == 0) return false;
  return tl_has_nonfinite(t.data(), t.NumElements(), dtype);
}

// All elements in one dimension: TensorFlow's CPU tensors are always row-major and dense.
inline bool measure(const Tensor& t, TlStats* stats) {
  const TlDtype dtype = dtype_of(t.dtype());
  if (dtype == TL_OTHER || t.NumElements() == 0) return false;
  const int64_t size = t.NumElements();
  const TlView view{t.data(), dtype, 1, &size, nullptr};
  tl_stats(&view, stats);
  return true;
}

}  // namespace tracelens
