// Statistics of ATen tensors through the framework-free kernels. CPU data only.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "record.h"
#include "tensor_stats.h"
#include "values.h"

namespace tracelens {

inline TlDtype dtype_of(c10::ScalarType t) {
  switch (t) {
    case at::kFloat: return TL_F32;
    case at::kDouble: return TL_F64;
    case at::kHalf: return TL_F16;
    case at::kBFloat16: return TL_BF16;
    case at::kComplexFloat: return TL_C64;
    case at::kComplexDouble: return TL_C128;
    case at::kFloat8_e4m3fn: return TL_F8_E4M3FN;
    case at::kFloat8_e5m2: return TL_F8_E5M2;
    case at::kChar: return TL_I8;
    case at::kShort: return TL_I16;
    case at::kInt: return TL_I32;
    case at::kLong: return TL_I64;
    case at::kByte: return TL_U8;
    case at::kBool: return TL_BOOL;
    default: return TL_OTHER;
  }
}

inline bool readable(const at::TensorImpl* impl) {
  return is_plain(impl) && impl->is_cpu() && impl->numel() > 0 && impl->layout() == c10::kStrided && impl->unsafe_storage().data() != nullptr &&
         impl->dim() <= TL_MAX_DIMS;
}

inline TlView view_of(const at::TensorImpl* impl) {
  TlView v;
  v.dtype = dtype_of(c10::typeMetaToScalarType(impl->dtype()));
  v.data = static_cast<const char*>(impl->unsafe_storage().data()) +
           impl->storage_offset() * impl->itemsize();
  v.ndim = int(impl->dim());
  v.sizes = impl->sizes().data();
  v.strides = impl->strides().data();
  return v;
}

inline bool is_floating(const at::TensorImpl* impl) {
  return tl_is_floating(dtype_of(c10::typeMetaToScalarType(impl->dtype())));
}

inline bool has_nonfinite(const at::TensorImpl* impl) {
  if (!is_floating(impl) || !readable(impl)) return false;
  const TlView v = view_of(impl);
  if (impl->is_contiguous()) return tl_has_nonfinite(v.data, impl->numel(), v.dtype);
  return tl_has_nonfinite_view(&v);
}

inline void put_stats(Record& r, const TlStats& s) {
  r.stat_level = 2;
  r.numel = s.numel;
  r.nan = s.nan;
  r.posinf = s.posinf;
  r.neginf = s.neginf;
  r.zero = s.zero;
  r.vmin = float(s.min);
  r.vmax = float(s.max);
  r.mean = float(s.mean);
  r.std = float(s.std);
  r.l2 = float(s.l2);
}

// Returns false where the data cannot be read (another device, no dense layout).
inline bool measure(const at::TensorImpl* impl, TlStats& s) {
  if (!readable(impl)) return false;
  const TlView v = view_of(impl);
  if (v.dtype == TL_OTHER) return false;
  tl_stats(&v, &s);
  return true;
}

inline void put_first_bad(Record& r, const at::TensorImpl* impl) {
  if (!is_floating(impl) || !readable(impl)) return;
  const TlView v = view_of(impl);
  tl_first_bad(&v, r.in_ids, 4);
}

inline bool is_parameter(const at::TensorImpl* impl) {
  if (!impl->requires_grad()) return false;
  const auto tensor = at::Tensor(c10::intrusive_ptr<at::TensorImpl>::reclaim_copy(
      const_cast<at::TensorImpl*>(impl)));
  return tensor.is_leaf();
}

inline const char* dtype_name(c10::ScalarType t) {
  switch (t) {
    case at::kFloat: return "float32";
    case at::kDouble: return "float64";
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    case at::kComplexFloat: return "complex64";
    case at::kComplexDouble: return "complex128";
    case at::kFloat8_e4m3fn: return "float8_e4m3fn";
    case at::kFloat8_e5m2: return "float8_e5m2";
    case at::kChar: return "int8";
    case at::kShort: return "int16";
    case at::kInt: return "int32";
    case at::kLong: return "int64";
    case at::kByte: return "uint8";
    case at::kBool: return "bool";
    default: return c10::toString(t);
  }
}

// [dtype, [sizes], device] as JSON; null for what is not a dense tensor.
inline void append_layout(std::string& out, const at::TensorImpl* impl) {
  if (!impl || !is_plain(impl)) {
    out += "null";
    return;
  }
  out += "[\"";
  out += dtype_name(c10::typeMetaToScalarType(impl->dtype()));
  out += "\",[";
  bool first = true;
  for (int64_t size : impl->sizes()) {
    if (!first) out += ',';
    out += std::to_string(size);
    first = false;
  }
  out += "],\"";
  out += impl->device().str();
  out += "\"]";
}

}  // namespace tracelens
