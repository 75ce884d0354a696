// The user's frame, the module call and the autograd engine around the op being run, found by
// walking the Python stack with what the stable ABI offers.

#ifndef TRACELENS_PLACES_H
#define TRACELENS_PLACES_H

#include <Python.h>

#include <stdint.h>

#include <unordered_map>

#include "pointer_cache.h"

namespace tl {

enum CodeClass {
  UNKNOWN_CODE = 0,
  USER_CODE = 1,
  FRAMEWORK_CODE = 2,
  ENGINE_CODE = 3,       // runs the autograd engine: what is outside it is not the op's place
  MAKE_GRADS_CODE = 4,   // makes the first gradient of a backward
  MODULE_CALL_CODE = 5,  // calls a module's forward; its local `self` is the module
};

struct Place {
  PyObject* code = nullptr;    // borrowed: the code table keeps it alive
  PyObject* module = nullptr;  // an identity only: never dereferenced after the walk
  int lasti = -1;
  bool in_engine = false;
  bool in_make_grads = false;
};

class PlaceFinder {
 public:
  static constexpr int max_frames = 96, max_frames_beyond_user = 24;

  void set_classifier(PyObject* classify) {
    Py_XINCREF(classify);
    Py_XDECREF(classify_);
    classify_ = classify;
  }

  // `stop_at_engine`: what called the autograd engine is of no interest.
  Place find(bool stop_at_engine) {
    Place place;
    auto* top = (PyObject*)PyEval_GetFrame();
    if (!top) return place;
    Py_INCREF(top);
    for (int left = max_frames; top && left > 0; left--) {
      PyObject* code = (PyObject*)PyFrame_GetCode((PyFrameObject*)top);
      const int kind = class_of(code);
      bool done = false;
      if (kind == ENGINE_CODE) {
        if (!place.code) place.in_engine = true;
        done = stop_at_engine || place.code;
      } else if (kind == MAKE_GRADS_CODE) {
        place.in_make_grads = place.code == nullptr;
      } else if (kind == MODULE_CALL_CODE) {
        if (!place.module) place.module = self_of(top);
        done = place.code != nullptr;
      } else if (kind == USER_CODE && !place.code) {
        place.code = code;
        place.lasti = (int)int_attribute(top, "f_lasti", &s_lasti_);
        left = left < max_frames_beyond_user ? left : max_frames_beyond_user;
        done = place.module != nullptr;
      }
      Py_DECREF(code);
      PyObject* back = done ? nullptr : attribute(top, "f_back", &s_back_);
      Py_DECREF(top);
      if (back == Py_None) {
        Py_DECREF(back);
        back = nullptr;
      }
      top = back;
    }
    Py_XDECREF(top);
    PyErr_Clear();
    return place;
  }

  void clear() {
    for (auto& entry : classes_) Py_DECREF(entry.first);
    classes_.clear();
    recent_.clear();
  }

 private:
  int class_of(PyObject* code) {
    if (int* kind = recent_.find((uintptr_t)code)) return *kind;
    auto it = classes_.find(code);
    if (it != classes_.end()) {
      recent_.put((uintptr_t)code, it->second);
      return it->second;
    }
    PyObject* answer =
        classify_ ? PyObject_CallFunctionObjArgs(classify_, code, nullptr) : nullptr;
    int kind = answer ? (int)PyLong_AsLong(answer) : FRAMEWORK_CODE;
    Py_XDECREF(answer);
    if (PyErr_Occurred()) {
      PyErr_Clear();
      kind = FRAMEWORK_CODE;
    }
    // The reference keeps the address from meaning another code object later.
    Py_INCREF(code);
    classes_.emplace(code, kind);
    return kind;
  }

  PyObject* self_of(PyObject* frame) {
    PyObject* locals = attribute(frame, "f_locals", &s_locals_);
    PyObject* self = nullptr;
    if (locals) {
      if (!s_self_) s_self_ = PyUnicode_InternFromString("self");
      self = PyObject_GetItem(locals, s_self_);
      Py_DECREF(locals);
    }
    Py_XDECREF(self);  // the frame itself keeps it alive
    PyErr_Clear();
    return self;
  }

  static PyObject* attribute(PyObject* object, const char* name, PyObject** interned) {
    if (!*interned) *interned = PyUnicode_InternFromString(name);
    return PyObject_GetAttr(object, *interned);
  }

  static long int_attribute(PyObject* object, const char* name, PyObject** interned) {
    PyObject* value = attribute(object, name, interned);
    long number = value ? PyLong_AsLong(value) : -1;
    Py_XDECREF(value);
    return number;
  }

  PyObject* classify_ = nullptr;
  PyObject *s_back_ = nullptr, *s_lasti_ = nullptr, *s_locals_ = nullptr, *s_self_ = nullptr;
  std::unordered_map<PyObject*, int> classes_;
  PointerCache<int, 256> recent_;
};

}  // namespace tl

#endif  // TRACELENS_PLACES_H
