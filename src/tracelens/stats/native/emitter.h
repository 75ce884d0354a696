// Emitter: writes op records into a ring for Python, measuring an output on the way.

#ifndef TRACELENS_EMITTER_H
#define TRACELENS_EMITTER_H

#include <Python.h>

#include <sys/syscall.h>
#include <unistd.h>

#include "array_view.h"
#include "ring_record.h"

namespace {

struct EmitterObject {
  PyObject_HEAD
  tl::RingWriter* ring;
  int64_t epoch_ns;
};

bool parse_ring(PyObject* args, PyObject* kwargs, tl::RingWriter* ring, int64_t* epoch_ns) {
  static const char* names[] = {"record_address", "capacity",    "head_address",
                                "sealed_address", "first_op_id", "epoch_monotonic_ns",
                                "stream",         "block",       "op_id_address",
                                nullptr};
  unsigned long long records, capacity, head, sealed, op_ids = 0;
  long long first_op_id = 0, epoch = 0;
  int stream = 0, block = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKKK|LLppK", (char**)names, &records, &capacity,
                                   &head, &sealed, &first_op_id, &epoch, &stream, &block,
                                   &op_ids)) {
    return false;
  }
  if (capacity == 0 || (capacity & (capacity - 1))) {
    PyErr_SetString(PyExc_ValueError, "capacity must be a power of two");
    return false;
  }
  if (!records || !head || !sealed) {
    PyErr_SetString(PyExc_ValueError, "the ring's addresses must not be 0");
    return false;
  }
  ring->open(records, capacity, head, sealed, first_op_id, stream, block, op_ids);
  *epoch_ns = epoch;
  return true;
}

PyObject* allocate(PyTypeObject* type) {
  auto* make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  return make(type, 0);
}

void release(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  auto* free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
  free_object(self);
  Py_DECREF(type);
}

PyObject* emitter_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  auto* self = (EmitterObject*)allocate(type);
  if (!self) return nullptr;
  self->ring = new tl::RingWriter();
  if (!parse_ring(args, kwargs, self->ring, &self->epoch_ns)) {
    Py_DECREF(self);
    return nullptr;
  }
  return (PyObject*)self;
}

void emitter_dealloc(PyObject* self) {
  delete ((EmitterObject*)self)->ring;
  release(self);
}

PyObject* emitter_reserve(PyObject* self, PyObject*) {
  return PyLong_FromUnsignedLongLong(((EmitterObject*)self)->ring->reserve());
}

PyObject* emitter_reserve_op_id(PyObject* self, PyObject*) {
  return PyLong_FromLongLong(((EmitterObject*)self)->ring->reserve_op_id());
}

PyObject* emitter_close(PyObject* self, PyObject*) {
  ((EmitterObject*)self)->ring->close();
  Py_RETURN_NONE;
}

PyObject* emitter_dropped(PyObject* self, void*) {
  return PyLong_FromLongLong(((EmitterObject*)self)->ring->dropped());
}

// A record's floats are finite: a float64 beyond their range is given as their largest.
float clamped(double x) {
  if (x != x) return 0;
  return (float)(x > 3.4028234663852886e38 ? 3.4028234663852886e38
                 : x < -3.4028234663852886e38 ? -3.4028234663852886e38 : x);
}

void make_room(EmitterObject* emitter) {
  if (!emitter->ring->full() || !emitter->ring->blocks()) return;
  // The sealer may be a Python thread: it needs the GIL to make room.
  Py_BEGIN_ALLOW_THREADS
  for (int i = 0; i < 20000 && emitter->ring->full(); i++) usleep(100);
  Py_END_ALLOW_THREADS
}

// op(site_id, step, phase, flags, fwd_op_id, duration_ns, *input ids): one OP record now, under
// a fresh op id, which it returns; its output 0 gets the op's value id.
PyObject* emitter_op(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  auto* emitter = (EmitterObject*)self;
  if (n < 2) {
    PyErr_SetString(PyExc_TypeError, "op() takes at least site_id and step");
    return nullptr;
  }
  long long numbers[10] = {0, 0, tl::FORWARD, 0, -1, -1, -1, -1, -1, -1};
  for (Py_ssize_t i = 0; i < n && i < 10; i++) numbers[i] = PyLong_AsLongLong(args[i]);
  if (PyErr_Occurred()) return nullptr;
  static thread_local int32_t tid = 0;
  if (!tid) tid = (int32_t)syscall(SYS_gettid);
  tl::RingRecord r;
  tl::clear_record(&r);
  r.site_id = (int32_t)numbers[0];
  r.step = numbers[1];
  r.phase = (uint8_t)numbers[2];
  r.flags = (uint16_t)numbers[3];
  r.fwd_op_id = numbers[4];
  r.duration_ns = numbers[5];
  for (int i = 0; i < 4; i++) r.in_ids[i] = numbers[6 + i];
  r.n_in = (uint8_t)(n > 6 ? n - 6 : 0);
  r.n_out = 1;
  r.tid = tid;
  r.op_id = emitter->ring->reserve_op_id();
  r.value_id = r.op_id << 4;
  r.start_ns = tl::monotonic_ns() - emitter->epoch_ns - (r.duration_ns > 0 ? r.duration_ns : 0);
  make_room(emitter);
  emitter->ring->emit(r);
  return PyLong_FromLongLong(r.op_id);
}

// measured(array or None, full, input ids, site, step, phase, flags, forward op, layout, start,
// duration, outputs): looks at an op's first output and writes its record, unless that is bad.
PyObject* emitter_measured(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  auto* emitter = (EmitterObject*)self;
  if (n != 12 || !PyList_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "measured() takes 12 arguments, the third a list");
    return nullptr;
  }
  long long numbers[9];
  for (int i = 0; i < 9; i++) numbers[i] = PyLong_AsLongLong(args[3 + i]);
  const bool full = args[1] == Py_True;
  if (PyErr_Occurred()) return nullptr;
  tl::RingRecord r;
  tl::clear_record(&r);
  r.flags = (uint16_t)numbers[3];
  if (args[0] != Py_None) {
    tl::ObjectView view;
    if (!view.open(args[0])) return PyLong_FromLong(-2);
    if (full) {
      TlStats s;
      tl_stats(&view.view, &s);
      if (s.finite < s.numel) return PyLong_FromLong(-1);
      r.stat_level = 2;
      r.numel = s.numel;
      r.zero = s.zero;
      r.nan = r.posinf = r.neginf = 0;
      r.vmin = clamped(s.min);
      r.vmax = clamped(s.max);
      r.mean = clamped(s.mean);
      r.std = clamped(s.std);
      r.l2 = clamped(s.l2);
    } else if (tl_has_nonfinite_view(&view.view)) {
      return PyLong_FromLong(-1);
    }
    r.flags |= tl::CHECKED;
  }
  static thread_local int32_t tid = 0;
  if (!tid) tid = (int32_t)syscall(SYS_gettid);
  const Py_ssize_t n_in = PyList_Size(args[2]);
  r.site_id = (int32_t)numbers[0];
  r.step = numbers[1];
  r.phase = (uint8_t)numbers[2];
  r.fwd_op_id = numbers[4];
  r.layout_id = (int32_t)numbers[5];
  r.start_ns = numbers[6];
  r.duration_ns = numbers[7];
  r.n_in = (uint8_t)(n_in > 255 ? 255 : n_in);
  r.n_out = (uint8_t)numbers[8];
  r.tid = tid;
  for (Py_ssize_t i = 0; i < n_in && i < 4; i++) {
    r.in_ids[i] = PyLong_AsLongLong(PyList_GetItem(args[2], i));
  }
  r.op_id = emitter->ring->reserve_op_id();
  if (numbers[8] > 0) r.value_id = r.flags & tl::VIEW ? r.in_ids[0] : r.op_id << 4;
  make_room(emitter);
  emitter->ring->emit(r);
  for (Py_ssize_t at = 4; at < n_in; at += 4) {
    tl::RingRecord more;
    tl::clear_record(&more);
    more.kind = tl::KIND_INPUTS;
    more.tid = tid;
    more.op_id = r.op_id;
    more.step = r.step;
    more.start_ns = r.start_ns;
    more.n_in = (uint8_t)(at > 255 ? 255 : at);
    for (Py_ssize_t i = 0; i < 4 && at + i < n_in; i++) {
      more.in_ids[i] = PyLong_AsLongLong(PyList_GetItem(args[2], at + i));
    }
    emitter->ring->emit(more);
  }
  if (PyErr_Occurred()) return nullptr;
  return PyLong_FromLongLong(r.op_id);
}

PyMethodDef emitter_methods[] = {
    {"measured", (PyCFunction)(void (*)())emitter_measured, METH_FASTCALL,
     "measured(array, full, input_ids, site_id, step, phase, flags, fwd_op_id, layout_id, start_ns, "
     "duration_ns, n_out) -> op_id; -1: it is bad, -2: it cannot be read, and nothing is written"},
    {"op", (PyCFunction)(void (*)())emitter_op, METH_FASTCALL,
     "op(site_id, step, phase=2, flags=0, fwd_op_id=-1, duration_ns=-1, *input_ids) -> op_id"},
    {"reserve", emitter_reserve, METH_NOARGS, "Take the next ring position."},
    {"reserve_op_id", emitter_reserve_op_id, METH_NOARGS, "Take the next op id."},
    {"close", emitter_close, METH_NOARGS, "Write nothing from now on."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef emitter_fields[] = {
    {"dropped", emitter_dropped, nullptr, "Records lost because the ring was full.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot emitter_slots[] = {{Py_tp_new, (void*)emitter_new},
                               {Py_tp_dealloc, (void*)emitter_dealloc},
                               {Py_tp_methods, emitter_methods},
                               {Py_tp_getset, emitter_fields},
                               {Py_tp_doc, (void*)"Writes op records into a ring."},
                               {0, nullptr}};
PyType_Spec emitter_spec = {"tracelens.stats._native.Emitter", sizeof(EmitterObject), 0,
                            Py_TPFLAGS_DEFAULT, emitter_slots};

}  // namespace

#endif  // TRACELENS_EMITTER_H
