// Reads tensors of any framework without its headers: DLPack's C exchange API where the type
// offers it (torch >= 2.10), numpy's __array_interface__ elsewhere. Declarations follow the
// DLPack 1.3 specification; only the fields that are read are declared.

#ifndef TRACELENS_ARRAY_VIEW_H
#define TRACELENS_ARRAY_VIEW_H

#include <Python.h>

#include "tensor_stats.h"

namespace tl {

struct DlTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DlExchange {
  uint32_t major, minor;
  DlExchange* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
  void* current_stream;
};

enum DlDevice { DL_CPU = 1, DL_CUDA_HOST = 3 };

inline TlDtype dl_dtype(const DlTensor& t) {
  if (t.lanes != 1) return TL_OTHER;
  switch (t.code) {
    case 0: return t.bits == 8 ? TL_I8 : t.bits == 16 ? TL_I16 : t.bits == 32 ? TL_I32 : TL_I64;
    case 1: return t.bits == 8 ? TL_U8 : TL_OTHER;
    case 2: return t.bits == 32 ? TL_F32 : t.bits == 64 ? TL_F64 : t.bits == 16 ? TL_F16 : TL_OTHER;
    case 4: return TL_BF16;
    case 5: return t.bits == 64 ? TL_C64 : t.bits == 128 ? TL_C128 : TL_OTHER;
    case 6: return TL_BOOL;
    case 10: return TL_F8_E4M3FN;
    case 12: return TL_F8_E5M2;
    default: return TL_OTHER;
  }
}

inline bool dl_readable(const DlTensor& t) {
  if (t.device_type != DL_CPU && t.device_type != DL_CUDA_HOST) return false;
  if (t.ndim < 0 || t.ndim > TL_MAX_DIMS) return false;
  if (t.data) return true;
  for (int d = 0; d < t.ndim; d++) {
    if (t.shape[d] == 0) return true;
  }
  return false;  // no memory behind it: a fake or meta tensor
}

inline TlView dl_view(const DlTensor& t) {
  TlView view;
  view.data = (const char*)t.data + t.byte_offset;
  view.dtype = dl_dtype(t);
  view.ndim = t.ndim;
  view.sizes = t.shape;
  view.strides = t.strides;
  return view;
}

// Whether a tensor type runs Python for its ops: what such a wrapper's memory holds, if it has
// any, is not its value, and touching it may warn.
inline bool is_wrapper(PyObject* type) {
  PyObject* handler = PyObject_GetAttrString(type, "__torch_dispatch__");
  PyObject* name = handler ? PyObject_GetAttrString(handler, "__name__") : nullptr;
  const bool wrapper =
      name && PyUnicode_CompareWithASCIIString(name, "_disabled_torch_dispatch_impl") != 0;
  Py_XDECREF(handler);
  Py_XDECREF(name);
  PyErr_Clear();
  return wrapper;
}

// The exchange API of a type, null if it has none this code understands. Clears errors.
inline const DlExchange* find_exchange(PyObject* type) {
  if (is_wrapper(type)) return nullptr;
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  auto* api = (const DlExchange*)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  Py_DECREF(capsule);
  PyErr_Clear();
  while (api && api->major > 1) api = api->older;
  return api && api->major == 1 && api->tensor_from_object ? api : nullptr;
}

// Owns what a view of a Python object needs while it is read.
class ObjectView {
 public:
  // False if the object cannot be read here (device, sparse, foreign); never leaves an error.
  bool open(PyObject* object) {
    PyObject* type = (PyObject*)Py_TYPE(object);
    static PyObject* known_type = nullptr;
    static const DlExchange* known_api = nullptr;
    static PyObject* plain_type = nullptr;  // the last one without the API: numpy's, as a rule
    if (type == plain_type) return open_interface(object);
    if (type != known_type) {
      const DlExchange* api = find_exchange(type);
      if (!api) {
        Py_XDECREF(plain_type);
        Py_INCREF(type);
        plain_type = type;
        return open_interface(object);
      }
      Py_XDECREF(known_type);
      Py_INCREF(type);
      known_type = type;
      known_api = api;
    }
    DlTensor t;
    if (known_api->tensor_from_object(object, &t) != 0) {
      PyErr_Clear();
      return false;
    }
    if (!dl_readable(t)) return false;
    view = dl_view(t);
    return view.dtype != TL_OTHER;
  }

  TlView view;

 private:
  bool open_interface(PyObject* object) {
    PyObject* interface = PyObject_GetAttrString(object, "__array_interface__");
    bool ok = interface && PyDict_Check(interface) && read_interface(interface);
    Py_XDECREF(interface);
    PyErr_Clear();
    return ok;
  }

  bool read_interface(PyObject* interface) {
    PyObject* typestr = PyDict_GetItemString(interface, "typestr");
    PyObject* data = PyDict_GetItemString(interface, "data");
    PyObject* shape = PyDict_GetItemString(interface, "shape");
    PyObject* strides = PyDict_GetItemString(interface, "strides");
    if (!typestr || !PyUnicode_Check(typestr) || !data || !PyTuple_Check(data) || !shape ||
        !PyTuple_Check(shape)) {
      return false;
    }
    Py_ssize_t length;
    const char* text = PyUnicode_AsUTF8AndSize(typestr, &length);
    if (!text || length < 3 || text[0] == '>') return false;
    view.dtype = typestr_dtype(text + 1);
    const int bytes = tl_element_bytes(view.dtype);
    const Py_ssize_t ndim = PyTuple_Size(shape);
    if (bytes == 0 || ndim > TL_MAX_DIMS) return false;
    view.data = PyLong_AsVoidPtr(PyTuple_GetItem(data, 0));
    view.ndim = (int)ndim;
    view.sizes = sizes_;
    view.strides = nullptr;
    for (Py_ssize_t d = 0; d < ndim; d++) {
      sizes_[d] = PyLong_AsLongLong(PyTuple_GetItem(shape, d));
    }
    if (strides && PyTuple_Check(strides) && PyTuple_Size(strides) == ndim) {
      for (Py_ssize_t d = 0; d < ndim; d++) {
        const int64_t stride = PyLong_AsLongLong(PyTuple_GetItem(strides, d));
        if (stride % bytes) return false;
        strides_[d] = stride / bytes;
      }
      view.strides = strides_;
    }
    return !PyErr_Occurred();
  }

  static TlDtype typestr_dtype(const char* text) {
    static const struct { const char* name; TlDtype dtype; } known[] = {
        {"f4", TL_F32}, {"f8", TL_F64}, {"f2", TL_F16},  {"c8", TL_C64}, {"c16", TL_C128},
        {"i1", TL_I8},  {"i2", TL_I16}, {"i4", TL_I32},  {"i8", TL_I64}, {"u1", TL_U8},
        {"b1", TL_BOOL},
    };
    for (const auto& entry : known) {
      if (strcmp(text, entry.name) == 0) return entry.dtype;
    }
    return TL_OTHER;
  }

  int64_t sizes_[64], strides_[64];
};

}  // namespace tl

#endif  // TRACELENS_ARRAY_VIEW_H
