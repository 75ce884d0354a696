// The user's Python frame and module of the op being run, read without strings and, on CPython
// 3.11 and 3.12, without the GIL: the calling thread is blocked in C, so its frames stand still.
#pragma once

#include <Python.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030D0000 && !defined(TRACELENS_PUBLIC_FRAMES)
#define TRACELENS_FAST_FRAMES 1
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE
#endif

namespace tracelens {

enum CodeClass : uint8_t {
  kUnknownCode = 0,
  kUserCode = 1,
  kFrameworkCode = 2,
  kEngineCode = 3,      // torch.autograd.graph._engine_run_backward
  kMakeGradsCode = 4,   // torch.autograd._make_grads
  kModuleCallCode = 5,  // nn.Module._wrapped_call_impl: its first local is the module
};

struct Place {
  PyObject* code = nullptr;  // user's code object, borrowed; kept alive by the class table
  PyObject* module = nullptr;
  int32_t lasti = -1;
  bool in_engine = false;      // the autograd engine stands between the op and the user's frame
  bool in_make_grads = false;  // the op is the ones_like of a loss whose backward begins
};

// Code objects that were classified once; lookups take no lock and no GIL.
class CodeTable {
 public:
  using Classifier = CodeClass (*)(PyObject* code);

  CodeClass find(PyObject* code) const {
    const Table* t = table_.load(std::memory_order_acquire);
    for (size_t i = hash(code) & t->mask;; i = (i + 1) & t->mask) {
      PyObject* key = t->slots[i].code.load(std::memory_order_acquire);
      if (key == code) return t->slots[i].kind;
      if (!key) return kUnknownCode;
    }
  }

  // Needs the GIL. The code object is kept alive, so that its address can never mean another.
  void add(PyObject* code, CodeClass kind) {
    std::lock_guard<std::mutex> lock(mutex_);
    Table* t = table_.load();
    if ((used_ + 1) * 2 > t->mask) {
      tables_.push_back(std::make_unique<Table>((t->mask + 1) * 2));
      Table* bigger = tables_.back().get();
      for (size_t i = 0; i <= t->mask; ++i)
        if (PyObject* key = t->slots[i].code.load()) put(*bigger, key, t->slots[i].kind);
      table_.store(bigger, std::memory_order_release);
      t = bigger;
    }
    if (put(*t, code, kind)) {
      Py_INCREF(code);
      ++used_;
    }
  }

  CodeTable() {
    tables_.push_back(std::make_unique<Table>(4096));
    table_.store(tables_.back().get());
  }

 private:
  struct Slot {
    std::atomic<PyObject*> code{nullptr};
    CodeClass kind = kUnknownCode;
  };
  struct Table {
    explicit Table(size_t n) : mask(n - 1), slots(n) {}
    size_t mask;
    std::vector<Slot> slots;
  };
  static size_t hash(PyObject* p) {
    return (reinterpret_cast<uintptr_t>(p) >> 4) * 0x9E3779B97F4A7C15ull >> 24;
  }
  static bool put(Table& t, PyObject* code, CodeClass kind) {
    size_t i = hash(code) & t.mask;
    while (PyObject* key = t.slots[i].code.load()) {
      if (key == code) {
        t.slots[i].kind = kind;
        return false;
      }
      i = (i + 1) & t.mask;
    }
    t.slots[i].kind = kind;
    t.slots[i].code.store(code, std::memory_order_release);
    return true;
  }
  std::atomic<Table*> table_{nullptr};
  std::vector<std::unique_ptr<Table>> tables_;  // outgrown tables stay: a reader may still be in one
  std::mutex mutex_;
  size_t used_ = 0;
};

constexpr int kMaxFrames = 96;
constexpr int kMaxFramesBeyondUser = 24;

// Walks outwards to the user's nearest frame and to the nearest module call.
template <class Classify>
Place find_place(const CodeTable& codes, Classify classify) {
  Place place;
  auto visit = [&](PyObject* code, int32_t lasti, PyObject* first_local, int& left) {
    CodeClass kind = codes.find(code);
    if (kind == kUnknownCode) kind = classify(code);
    switch (kind) {
      case kEngineCode:
        if (!place.code) place.in_engine = true;
        break;
      case kMakeGradsCode:
        if (!place.code) place.in_make_grads = true;
        break;
      case kModuleCallCode:
        if (!place.module) place.module = first_local;
        break;
      case kUserCode:
        if (!place.code) {
          place.code = code;
          place.lasti = lasti;
          left = kMaxFramesBeyondUser;
        }
        break;
      default:
        break;
    }
    return !(place.code && place.module);
  };
  int left = kMaxFrames;
#ifdef TRACELENS_FAST_FRAMES
  PyThreadState* state = PyGILState_GetThisThreadState();
  if (!state) return place;
  for (auto* f = state->cframe->current_frame; f && left > 0; f = f->previous, --left) {
    PyObject* code = reinterpret_cast<PyObject*>(f->f_code);
    if (!visit(code, _PyInterpreterFrame_LASTI(f) * int(sizeof(_Py_CODEUNIT)), f->localsplus[0], left)) break;
  }
#else
  if (!PyGILState_GetThisThreadState() || !Py_IsInitialized()) return place;
  PyGILState_STATE gil = PyGILState_Ensure();
  PyFrameObject* f = PyThreadState_GetFrame(PyThreadState_Get());
  while (f && left > 0) {
    PyCodeObject* code = PyFrame_GetCode(f);
    PyObject* owner = nullptr;
    if (codes.find(reinterpret_cast<PyObject*>(code)) == kModuleCallCode) {
      PyObject* locals = PyObject_GetAttrString(reinterpret_cast<PyObject*>(f), "f_locals");
      if (locals) owner = PyMapping_GetItemString(locals, "self");
      PyErr_Clear();
      Py_XDECREF(locals);
      Py_XDECREF(owner);  // the frame itself keeps its module alive
    }
    bool more = visit(reinterpret_cast<PyObject*>(code), PyFrame_GetLasti(f), owner, left);
    Py_DECREF(code);
    PyFrameObject* back = more ? PyFrame_GetBack(f) : nullptr;
    Py_DECREF(f);
    f = back;
    --left;
  }
  Py_XDECREF(f);
  PyGILState_Release(gil);
#endif
  return place;
}

}  // namespace tracelens
