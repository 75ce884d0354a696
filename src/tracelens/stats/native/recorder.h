// Records every op a Python dispatch mode sees, in C: what the mode's handler would do in
// Python, for a fifth of the price. Knows torch only through the Python objects it is given.

#ifndef TRACELENS_RECORDER_H
#define TRACELENS_RECORDER_H

#include <Python.h>

#include <math.h>
#include <sys/syscall.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "array_view.h"
#include "places.h"
#include "ring_record.h"
#include "value_ranges.h"

namespace tl {

enum OpTrait {
  TRAIT_SKIP = 1,         // not an operator: only call it
  TRAIT_SCALAR_READ = 2,  // the user looks at the value
  TRAIT_ONES_LIKE = 4,    // autograd starts a backward with it
  TRAIT_CAST = 8,         // harmless unless the exponent range shrinks
  TRAIT_UNCHECKED = 16,   // its outputs are not ready when it returns (collectives)
  TRAIT_TESTS = 32,       // isnan(): the program asks whether a value is bad
  TRAIT_SELF_TEST = 64,   // x != x asks the same, if both are one tensor
};

class Ref {
 public:
  Ref() = default;
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(p_); }
  void set(PyObject* p) {
    Py_XINCREF(p);
    std::swap(p, p_);
    Py_XDECREF(p);
  }
  PyObject* get() const { return p_; }

 private:
  PyObject* p_ = nullptr;
};

struct OpFacts {
  Ref key, target, name;
  uint16_t flags = 0;
  int traits = 0;
  std::vector<int> written;  // positions of arguments it writes without returning them
};

struct Seen {
  PyObject* object;  // borrowed: the arguments or the result own it
  ByteRange range;   // empty if unknown
  int64_t id;
  TlDtype dtype;
  int argument;
};

// The forward ops of one thread by the autograd sequence number of the node they made.
class ForwardOps {
 public:
  struct Entry {
    int64_t seq = -1, op_id = -1;
    int32_t site = 0;
  };
  void put(int64_t seq, int64_t op_id, int32_t site) {
    Entry& entry = entries_[(size_t)seq % size];
    entry.seq = seq;
    entry.op_id = op_id;
    entry.site = site;
  }
  const Entry* find(int64_t seq) const {
    if (seq < 0) return nullptr;
    const Entry& entry = entries_[(size_t)seq % size];
    return entry.seq == seq ? &entry : nullptr;
  }

 private:
  static constexpr size_t size = 1 << 16;
  std::vector<Entry> entries_ = std::vector<Entry>(size);
};

struct Out {
  PyObject* object;
  int64_t id;
};

// Buffers of one op; an op may run inside another one's call (a nested mode, a Python kernel).
struct Work {
  std::vector<Seen> inputs;
  std::vector<Out> outs;
};

struct ThreadState {
  int32_t tid = 0;
  int64_t last_seq = -1;
  uint64_t owner = 0;  // the recorder these numbers belong to
  std::shared_ptr<ForwardOps> forward;
  std::vector<std::unique_ptr<Work>> work;
  size_t depth = 0;

  Work& take() {
    if (depth == work.size()) work.push_back(std::make_unique<Work>());
    Work& w = *work[depth++];
    w.inputs.clear();
    w.outs.clear();
    return w;
  }
  void give() { depth--; }
};

class Recorder {
 public:
  // Python callables: describe(func) -> (name, flags, traits, written, target),
  // make_site(name, code, lasti, module, forward site, exact) -> id,
  // on_hit(...), on_sink(kind, tensor, op id, value id), on_failure(error) -> bool (the user is
  // to see it), tensor_kind(type) -> 1 own memory, 2 only traced, 0 unknown,
  // sequence_nr() -> int, current_node() -> node | None.
  Ref describe, make_site, on_hit, on_sink, on_failure, tensor_kind, sequence_nr, current_node;
  Ref tensor_type, parameter_type;
  RingWriter ring;
  PlaceFinder places;
  ValueRanges values;
  int64_t step = 0, epoch_ns = 0, ops = 0, hits = 0, failures = 0;
  int phase = OTHER;
  bool muted = false, check = true;

  Recorder() : serial_(next_serial()++) {}

  bool bind_exchange() {
    exchange_ = tensor_type.get() ? find_exchange(tensor_type.get()) : nullptr;
    return exchange_ != nullptr;
  }

  PyObject* dispatch(PyObject* func, PyObject* args, PyObject* kwargs) {
    OpFacts* facts = facts_of(func);
    if (!facts) {
      PyErr_Clear();
      return PyObject_Call(func, args, kwargs);
    }
    if ((facts->traits & TRAIT_SKIP) || muted) return call(facts, args, kwargs);
    ThreadState& thread = state();
    const int64_t seq = next_sequence();
    const bool made_node = seq != thread.last_seq && thread.last_seq >= 0;
    thread.last_seq = seq;
    if ((facts->flags & VIEW) && !made_node) return call(facts, args, kwargs);

    Frame f;
    f.facts = facts;
    f.flags = facts->flags;
    f.phase = phase == OTHER ? (int)FORWARD : phase;
    find_origin(thread, &f);
    if (facts->flags & VIEW) {
      // Not recorded, but what its backward does belongs to this line.
      if (made_node) remember_forward(thread, seq - 1, -1, f.site);
      return call(facts, args, kwargs);
    }
    f.op_id = ring.reserve_op_id();
    if (made_node) remember_forward(thread, seq - 1, f.op_id, f.site);
    Work& work = thread.take();
    see_inputs(args, kwargs, &work.inputs, &f.flags);
    if (f.flags & INPLACE) follow_writes(&work.inputs);
    for (const Seen& in : work.inputs) {
      if (!in.range.high && kind_of(in.object) == 2) {
        thread.give();
        return call(facts, args, kwargs);
      }
    }
    if ((facts->traits & TRAIT_ONES_LIKE) && f.in_make_grads && !work.inputs.empty() &&
        is_bad(work.inputs[0].object)) {
      report_sink("loss", work.inputs[0].object, f.op_id, work.inputs[0].id);
    }
    if ((facts->traits & (TRAIT_TESTS | TRAIT_SELF_TEST)) && asks_for_bad(*facts, work)) {
      report_sink("exception", work.inputs[0].object, f.op_id, work.inputs[0].id);
    }
    // An error here is one the engine wants the user to see (nonfinite="raise").
    PyObject* result = PyErr_Occurred() ? nullptr : call(facts, args, kwargs);
    if (result) {
      finish(thread, &f, &work, result);
      if (PyErr_Occurred()) {
        Py_DECREF(result);
        result = nullptr;
      }
    }
    thread.give();
    return result;
  }

  // Records an optimizer's step whose ops were not seen: gradients in, parameters out. Returns
  // the index of the first bad parameter, or -1.
  int record_update(PyObject* parameters, PyObject* gradients, int32_t site) {
    ThreadState& thread = state();
    Work& work = thread.take();
    Frame f;
    f.flags = INPLACE | CHECKED;
    f.phase = OPTIMIZER;
    f.site = site;
    f.op_id = ring.reserve_op_id();
    int first_bad = -1;
    for (Py_ssize_t i = 0; i < PyList_Size(gradients); i++) {
      work.inputs.emplace_back();
      see(PyList_GetItem(gradients, i), 0, &work.inputs.back(), &f.flags);
    }
    for (Py_ssize_t i = 0; i < PyList_Size(parameters); i++) {
      PyObject* parameter = PyList_GetItem(parameters, i);
      Out out{parameter, slot_value(f.op_id, i)};
      DlTensor t;
      if (read(parameter, &t)) {
        values.write(range_of(t), out.id, false);
        if (first_bad < 0 && dl_readable(t)) {
          TlView view = dl_view(t);
          if (tl_has_nonfinite_view(&view)) first_bad = (int)i;
        }
      }
      work.outs.push_back(out);
    }
    if (first_bad >= 0) {
      f.flags |= HIT;
      report_hit(thread, f, work);
    } else if (!work.outs.empty()) {
      emit(thread, f, work);
    }
    thread.give();
    return first_bad;
  }

  // Lets a tensor have the producer of a value.
  void adopt(PyObject* tensor, int64_t value_id) {
    DlTensor t;
    if (read(tensor, &t)) values.write(range_of(t), value_id, false);
  }

  // Forgets how far autograd had counted: ops ran that were not seen.
  void resume() { state().last_seq = next_sequence(); }

  int64_t value_id(PyObject* object) {
    Seen seen;
    uint16_t flags = 0;
    see(object, 0, &seen, &flags);
    return seen.range.high > seen.range.low ? values.find(seen.range) : -1;
  }

  // Gives tensors the values of an op that was not seen running; returns how many were known.
  int wrote(PyObject* tensors, int64_t op_id, bool only_unknown) {
    int known = 0;
    const Py_ssize_t n = PyList_Size(tensors);
    for (Py_ssize_t i = 0; i < n; i++) {
      Seen seen;
      uint16_t flags = 0;
      see(PyList_GetItem(tensors, i), 0, &seen, &flags);
      if (seen.range.high <= seen.range.low) continue;
      if (only_unknown && seen.id >= 0) {
        known++;
        continue;
      }
      values.write(seen.range, slot_value(op_id, i), false);
    }
    return known;
  }

  void forget_sites() {
    sites_.clear();
    recent_sites_.assign(recent_sites_.size(), RecentSite());
  }

  void close() {
    for (Ref* ref : {&describe, &make_site, &on_hit, &on_sink, &on_failure, &tensor_kind,
                     &sequence_nr, &current_node}) {
      ref->set(nullptr);
    }
    places.set_classifier(nullptr);
    ring.close();
    values.clear();
    forget_sites();
    places.clear();
  }

 private:
  struct Frame {
    OpFacts* facts = nullptr;
    uint16_t flags = 0;
    int phase = OTHER;
    int64_t op_id = -1, fwd_op_id = -1;
    int32_t site = 0;
    bool in_make_grads = false;
  };
  struct SiteKey {
    OpFacts* facts;
    PyObject *code, *module;
    int64_t at;
    bool operator==(const SiteKey& o) const {
      return facts == o.facts && code == o.code && module == o.module && at == o.at;
    }
  };
  struct RecentSite {
    SiteKey key{nullptr, nullptr, nullptr, 0};
    int32_t site = 0;
  };
  struct SiteHash {
    size_t operator()(const SiteKey& k) const {
      uint64_t h = (uint64_t)k.facts;
      h = (h ^ ((uint64_t)k.code >> 4)) * 0x9E3779B97F4A7C15ull;
      h = (h ^ ((uint64_t)k.module >> 4)) * 0x9E3779B97F4A7C15ull;
      h = (h ^ (uint64_t)k.at) * 0x9E3779B97F4A7C15ull;
      return (size_t)(h ^ (h >> 29));
    }
  };
  static uint64_t& next_serial() {
    static uint64_t serial = 1;
    return serial;
  }

  static int64_t slot_value(int64_t op_id, int64_t slot) {
    return op_id < 0 ? -1 : (op_id << 4) | (slot > 15 ? 15 : slot);
  }

  static PyObject* call(OpFacts* facts, PyObject* args, PyObject* kwargs) {
    return PyObject_Call(facts->target.get(), args, kwargs);
  }

  ThreadState& state() {
    static thread_local ThreadState thread;
    if (thread.owner != serial_) {
      thread.owner = serial_;
      thread.tid = (int32_t)syscall(SYS_gettid);
      thread.last_seq = -1;
      thread.forward = nullptr;
    }
    return thread;
  }

  void remember_forward(ThreadState& thread, int64_t seq, int64_t op_id, int32_t site) {
    if (!thread.forward) thread.forward = std::make_shared<ForwardOps>();
    last_forward_ = thread.forward;
    thread.forward->put(seq, op_id, site);
  }

  int64_t next_sequence() {
    PyObject* number = PyObject_CallObject(sequence_nr.get(), nullptr);
    const int64_t seq = number ? PyLong_AsLongLong(number) : -1;
    Py_XDECREF(number);
    if (!number) PyErr_Clear();
    return seq;
  }

  OpFacts* facts_of(PyObject* func) {
    if (OpFacts** recent = recent_facts_.find((uintptr_t)func)) return *recent;
    auto it = facts_.find(func);
    if (it != facts_.end()) {
      recent_facts_.put((uintptr_t)func, it->second.get());
      return it->second.get();
    }
    PyObject* answer = PyObject_CallFunctionObjArgs(describe.get(), func, nullptr);
    if (!answer) return nullptr;
    auto facts = std::make_unique<OpFacts>();
    PyObject *name, *written, *target;
    int flags, traits;
    if (!PyArg_ParseTuple(answer, "OiiO!O", &name, &flags, &traits, &PyTuple_Type, &written,
                          &target)) {
      Py_DECREF(answer);
      return nullptr;
    }
    facts->key.set(func);
    facts->name.set(name);
    facts->target.set(target);
    facts->flags = (uint16_t)flags;
    facts->traits = traits;
    for (Py_ssize_t i = 0; i < PyTuple_Size(written); i++) {
      facts->written.push_back((int)PyLong_AsLong(PyTuple_GetItem(written, i)));
    }
    Py_DECREF(answer);
    return (facts_[func] = std::move(facts)).get();
  }

  // Phase, forward op and site.
  void find_origin(ThreadState& thread, Frame* f) {
    int32_t forward_site = 0;
    PyObject* node = PyObject_CallObject(current_node.get(), nullptr);
    const bool in_backward = node && node != Py_None;
    if (in_backward) {
      if (f->phase != OPTIMIZER) f->phase = BACKWARD;
      static PyObject* method = PyUnicode_InternFromString("_sequence_nr");
      PyObject* number = PyObject_CallMethodObjArgs(node, method, nullptr);
      const auto seq = number ? (int64_t)PyLong_AsUnsignedLongLong(number) : -1;
      Py_XDECREF(number);
      // The engine's own threads make no forward ops: theirs are the calling thread's.
      const ForwardOps* ops_of_thread =
          thread.forward ? thread.forward.get() : last_forward_.get();
      const ForwardOps::Entry* entry = ops_of_thread ? ops_of_thread->find(seq) : nullptr;
      if (entry) {
        f->fwd_op_id = entry->op_id;
        forward_site = entry->site;
      }
    }
    Py_XDECREF(node);
    PyErr_Clear();
    const Place place = places.find(forward_site != 0);
    f->in_make_grads = place.in_make_grads;
    if (place.in_make_grads) f->phase = BACKWARD;
    const bool user = place.code && !place.in_engine;
    if (user) forward_site = 0;
    if (!user && !forward_site) f->flags |= INEXACT_SOURCE;
    SiteKey key{f->facts, nullptr, nullptr, forward_site};
    if (!forward_site) {
      key.code = place.code;
      key.module = place.module;
      key.at = place.lasti;
    }
    RecentSite& recent = recent_sites_[SiteHash()(key) % recent_sites_.size()];
    if (!(recent.key == key)) {
      auto it = sites_.find(key);
      recent.site = it != sites_.end() ? it->second : new_site(key, forward_site, user);
      recent.key = key;
    }
    f->site = recent.site;
  }

  int32_t new_site(const SiteKey& key, int32_t forward_site, bool user) {
    PyObject* code = key.code ? key.code : Py_None;
    PyObject* module = key.module ? key.module : Py_None;
    PyObject* answer = PyObject_CallFunction(
        make_site.get(), "OOLOii", key.facts->name.get(), code, (long long)key.at, module,
        (int)forward_site, (int)(user || forward_site));
    const int32_t site = answer ? (int32_t)PyLong_AsLong(answer) : 0;
    Py_XDECREF(answer);
    if (PyErr_Occurred()) failed();
    if (sites_.size() > 1 << 18) forget_sites();
    sites_.emplace(key, site);
    return site;
  }

  void failed() {
    failures++;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject* answer = on_failure.get() ? PyObject_CallFunctionObjArgs(
                                              on_failure.get(), value ? value : Py_None, nullptr)
                                        : nullptr;
    const bool meant_for_the_user = answer == Py_True;
    Py_XDECREF(answer);
    PyErr_Clear();
    if (meant_for_the_user) {
      PyErr_Restore(type, value, trace);
      return;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
  }

  bool is_tensor(PyObject* object) const {
    auto* type = (PyObject*)Py_TYPE(object);
    if (type == tensor_type.get() || type == parameter_type.get()) return true;
    return PyType_IsSubtype((PyTypeObject*)type, (PyTypeObject*)tensor_type.get()) != 0;
  }

  int kind_of(PyObject* object) {
    auto* type = (PyObject*)Py_TYPE(object);
    if (type == tensor_type.get() || type == parameter_type.get()) return 1;
    auto it = kinds_.find(type);
    if (it != kinds_.end()) return it->second;
    PyObject* answer = PyObject_CallFunctionObjArgs(tensor_kind.get(), type, nullptr);
    const int kind = answer ? (int)PyLong_AsLong(answer) : 0;
    Py_XDECREF(answer);
    PyErr_Clear();
    Py_INCREF(type);
    kinds_.emplace(type, kind);
    return kind;
  }

  bool read(PyObject* object, DlTensor* out) {
    if (kind_of(object) != 1) return false;
    if (exchange_->tensor_from_object(object, out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // The bytes from the first to past the last element of a strided tensor.
  static ByteRange range_of(const DlTensor& t) {
    const uintptr_t start = (uintptr_t)t.data + t.byte_offset;
    const uintptr_t item = t.bits / 8u * t.lanes;
    uintptr_t extent = 1;
    for (int d = 0; d < t.ndim; d++) {
      if (t.shape[d] == 0) return ByteRange{start, start};
      if (t.strides) {
        extent += (uintptr_t)((t.shape[d] - 1) * t.strides[d]);
      } else {
        extent *= (uintptr_t)t.shape[d];
      }
    }
    return t.data ? ByteRange{start, start + extent * item} : ByteRange{0, 0};
  }

  void see(PyObject* object, int argument, Seen* seen, uint16_t* flags) {
    DlTensor t;
    *seen = Seen{object, {0, 0}, -1, TL_OTHER, argument};
    if (!read(object, &t)) {
      *flags |= UNSEEN_INPUTS;
      return;
    }
    seen->range = range_of(t);
    seen->dtype = dl_dtype(t);
    seen->id = values.find(seen->range);
  }

  void see_argument(PyObject* object, int position, std::vector<Seen>* out, uint16_t* flags) {
    if (is_tensor(object)) {
      out->emplace_back();
      see(object, position, &out->back(), flags);
    } else if (PyFloat_Check(object)) {
      if (!isfinite(PyFloat_AsDouble(object))) *flags |= CONSTANT;
    } else if (PyList_Check(object)) {
      const Py_ssize_t n = PyList_Size(object);
      for (Py_ssize_t i = 0; i < n; i++) {
        PyObject* item = PyList_GetItem(object, i);
        if (!is_tensor(item)) continue;
        out->emplace_back();
        see(item, position, &out->back(), flags);
      }
    }
  }

  void see_inputs(PyObject* args, PyObject* kwargs, std::vector<Seen>* out, uint16_t* flags) {
    const Py_ssize_t n = PyTuple_Size(args);
    for (Py_ssize_t i = 0; i < n; i++) see_argument(PyTuple_GetItem(args, i), (int)i, out, flags);
    if (kwargs && PyDict_Size(kwargs) > 0) {
      PyObject *key, *value;
      Py_ssize_t at = 0;
      while (PyDict_Next(kwargs, &at, &key, &value)) see_argument(value, keyword_argument, out, flags);
    }
  }

  // What an in-place op overwrites was the result of the last write to that memory.
  void follow_writes(std::vector<Seen>* inputs) {
    for (Seen& in : *inputs) {
      const bool written = in.argument == 0 || in.argument == keyword_argument;
      if (written && in.range.high > in.range.low) in.id = values.newest(in.range);
    }
  }

  bool asks_for_bad(const OpFacts& facts, const Work& work) {
    if (work.inputs.empty()) return false;
    const bool same = work.inputs.size() == 2 && work.inputs[0].object == work.inputs[1].object;
    return ((facts.traits & TRAIT_TESTS) || same) && is_bad(work.inputs[0].object);
  }

  bool is_bad(PyObject* object) {
    DlTensor t;
    if (!read(object, &t) || !dl_readable(t)) return false;
    TlView view = dl_view(t);
    return tl_has_nonfinite_view(&view);
  }

  void report_sink(const char* kind, PyObject* tensor, int64_t op_id, int64_t value_id) {
    PyObject* answer = PyObject_CallFunction(on_sink.get(), "sOLL", kind, tensor,
                                             (long long)op_id, (long long)value_id);
    Py_XDECREF(answer);
    if (PyErr_Occurred()) failed();
  }

  static int exponent_bits(TlDtype dtype) {
    switch (dtype) {
      case TL_F8_E4M3FN: return 4;
      case TL_F16: case TL_F8_E5M2: return 5;
      case TL_F32: case TL_BF16: case TL_C64: return 8;
      default: return 11;
    }
  }

  static constexpr int keyword_argument = 1000;  // opfacts.KEYWORD
  enum Write { FRESH_OR_VIEW, IN_PLACE };

  // Registers an output; false if it only shows an input that was not written.
  bool see_output(PyObject* object, Frame* f, Work* work, Write write, bool judge, bool* bad) {
    DlTensor t;
    Out out{object, -1};
    const size_t slot = work->outs.size();
    if (!read(object, &t)) {
      work->outs.push_back(out);
      return true;
    }
    const ByteRange range = range_of(t);
    const TlDtype dtype = dl_dtype(t);
    const Seen* shown = nullptr;
    for (const Seen& in : work->inputs) {
      if (in.range.low <= range.low && range.low < in.range.high) {
        shown = &in;
        break;
      }
    }
    if (shown && write == FRESH_OR_VIEW) {
      out.id = shown->id;
      work->outs.push_back(out);
      return false;
    }
    if (range.high > range.low) {
      out.id = slot_value(f->op_id, (int64_t)slot);
      values.write(range, out.id, shown == nullptr);
    }
    work->outs.push_back(out);
    if (slot == 0 && (f->facts->traits & TRAIT_CAST) && !work->inputs.empty() &&
        exponent_bits(dtype) < exponent_bits(work->inputs.back().dtype)) {
      f->flags &= (uint16_t)~HARMLESS;
      judge = true;
    }
    if (judge && check && tl_is_floating(dtype) && dl_readable(t)) {
      f->flags |= CHECKED;
      TlView view = dl_view(t);
      if (tl_has_nonfinite_view(&view)) *bad = true;
    }
    return true;
  }

  void finish(ThreadState& thread, Frame* f, Work* work, PyObject* result) {
    // Checked even so: a bad value copied into a parameter is where it starts to matter.
    const bool into_parameter =
        (f->flags & INPLACE) && !work->inputs.empty() &&
        (PyObject*)Py_TYPE(work->inputs[0].object) == parameter_type.get();
    const uint16_t known = f->facts->flags;
    const bool judge = !(known & (GARBAGE | CONSTANT)) && (!(known & HARMLESS) || into_parameter) &&
                       !(f->facts->traits & TRAIT_UNCHECKED);
    const Write write = known & INPLACE ? IN_PLACE : FRESH_OR_VIEW;
    bool bad = false, wrote = false, any = false;
    if (is_tensor(result)) {
      any = true;
      wrote = see_output(result, f, work, write, judge, &bad);
    } else if (PyTuple_Check(result) || PyList_Check(result)) {
      const bool list = PyList_Check(result);
      const Py_ssize_t n = list ? PyList_Size(result) : PyTuple_Size(result);
      for (Py_ssize_t i = 0; i < n; i++) {
        PyObject* item = list ? PyList_GetItem(result, i) : PyTuple_GetItem(result, i);
        if (!is_tensor(item)) continue;
        any = true;
        if (see_output(item, f, work, write, judge, &bad)) wrote = true;
      }
    } else if ((f->facts->traits & TRAIT_SCALAR_READ) && PyFloat_Check(result)) {
      f->flags |= CHECKED;
      if (!isfinite(PyFloat_AsDouble(result)) && !work->inputs.empty()) {
        emit(thread, *f, *work);
        report_sink("read", work->inputs[0].object, f->op_id, work->inputs[0].id);
        return;
      }
    }
    for (int position : f->facts->written) {
      for (size_t i = 0; i < work->inputs.size(); i++) {
        if (work->inputs[i].argument != position) continue;
        any = wrote = true;
        see_output(work->inputs[i].object, f, work, IN_PLACE, judge, &bad);
      }
    }
    if (any && !wrote) return;  // what it shows keeps its producer
    ops++;
    if (!bad) {
      emit(thread, *f, *work);
      return;
    }
    hits++;
    f->flags |= HIT;
    report_hit(thread, *f, *work);
  }

  void emit(ThreadState& thread, const Frame& f, const Work& work) {
    const std::vector<Seen>& inputs = work.inputs;
    const std::vector<Out>& outs = work.outs;
    RingRecord r;
    clear_record(&r);
    r.phase = (uint8_t)f.phase;
    r.flags = f.flags;
    r.tid = thread.tid;
    r.site_id = f.site;
    r.op_id = f.op_id;
    r.step = step;
    r.fwd_op_id = f.fwd_op_id;
    r.start_ns = monotonic_ns() - epoch_ns;
    const size_t n = inputs.size();
    r.n_in = (uint8_t)(n > 255 ? 255 : n);
    r.n_out = (uint8_t)(outs.size() > 255 ? 255 : outs.size());
    for (size_t i = 0; i < n && i < 4; i++) r.in_ids[i] = inputs[i].id;
    if (!outs.empty()) r.value_id = outs[0].id;
    ring.emit(r);
    for (size_t at = 4; at < n; at += 4) {
      RingRecord more;
      clear_record(&more);
      more.kind = KIND_INPUTS;
      more.tid = thread.tid;
      more.op_id = f.op_id;
      more.step = step;
      more.start_ns = r.start_ns;
      more.n_in = (uint8_t)(at > 255 ? 255 : at);
      for (size_t i = 0; i < 4 && at + i < n; i++) more.in_ids[i] = inputs[at + i].id;
      ring.emit(more);
    }
  }

  static void append(PyObject* list, PyObject* object, int64_t id) {
    PyObject* pair = list ? Py_BuildValue("(OL)", object, (long long)id) : nullptr;
    if (pair) PyList_Append(list, pair);
    Py_XDECREF(pair);
  }

  // on_hit(op id, flags, phase, site, forward op, tid, [(input, id)], [(output, id)])
  void report_hit(ThreadState& thread, const Frame& f, const Work& work) {
    PyObject *ins = PyList_New(0), *outs = PyList_New(0);
    for (const Seen& in : work.inputs) append(ins, in.object, in.id);
    for (const Out& out : work.outs) append(outs, out.object, out.id);
    PyObject* answer =
        ins && outs ? PyObject_CallFunction(on_hit.get(), "LiiiLiOO", (long long)f.op_id,
                                            (int)f.flags, f.phase, (int)f.site,
                                            (long long)f.fwd_op_id, (int)thread.tid, ins, outs)
                    : nullptr;
    Py_XDECREF(ins);
    Py_XDECREF(outs);
    Py_XDECREF(answer);
    if (PyErr_Occurred()) failed();
  }

  const uint64_t serial_;
  const DlExchange* exchange_ = nullptr;
  std::unordered_map<PyObject*, std::unique_ptr<OpFacts>> facts_;
  std::unordered_map<PyObject*, int> kinds_;
  std::unordered_map<SiteKey, int32_t, SiteHash> sites_;
  std::vector<RecentSite> recent_sites_ = std::vector<RecentSite>(1024);
  PointerCache<OpFacts*, 256> recent_facts_;
  std::shared_ptr<ForwardOps> last_forward_;
};

}  // namespace tl

#endif  // TRACELENS_RECORDER_H
