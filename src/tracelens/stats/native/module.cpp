// tracelens.stats._native: the checks, statistics and ring writers for Python, in the stable
// ABI of CPython 3.10, so that one build serves every later version. Needs no framework.

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "array_view.h"
#include "emitter.h"
#include "recorder.h"
#include "ring_record.h"

namespace {

PyObject* check(PyObject*, PyObject* object) {
  tl::ObjectView view;
  if (!view.open(object)) return PyLong_FromLong(-1);
  return PyLong_FromLong(tl_has_nonfinite_view(&view.view) ? 1 : 0);
}

PyObject* first_nonfinite(PyObject*, PyObject* list) {
  if (!PyList_Check(list)) {
    PyErr_SetString(PyExc_TypeError, "first_nonfinite takes a list of tensors");
    return nullptr;
  }
  const Py_ssize_t n = PyList_Size(list);
  for (Py_ssize_t i = 0; i < n; i++) {
    tl::ObjectView view;
    if (view.open(PyList_GetItem(list, i)) && tl_has_nonfinite_view(&view.view)) {
      return PyLong_FromSsize_t(i);
    }
  }
  return PyLong_FromLong(-1);
}

PyObject* stats(PyObject*, PyObject* object) {
  tl::ObjectView view;
  if (!view.open(object)) Py_RETURN_NONE;
  TlStats s;
  tl_stats(&view.view, &s);
  return Py_BuildValue("(LLLLLLddddd)", (long long)s.numel, (long long)s.nan,
                       (long long)s.posinf, (long long)s.neginf, (long long)s.zero,
                       (long long)s.finite, s.min, s.max, s.mean, s.std, s.l2);
}

PyObject* first_bad(PyObject*, PyObject* args) {
  PyObject* object;
  int wanted = 4;
  if (!PyArg_ParseTuple(args, "O|i", &object, &wanted)) return nullptr;
  tl::ObjectView view;
  int64_t found[64];
  const int limit = wanted < 0 ? 0 : wanted > 64 ? 64 : wanted;
  const int n = view.open(object) ? tl_first_bad(&view.view, found, limit) : 0;
  PyObject* out = PyTuple_New(n);
  for (int i = 0; out && i < n; i++) PyTuple_SetItem(out, i, PyLong_FromLongLong(found[i]));
  return out;
}

// ------------------------------------------------------------------------------- Recorder

struct RecorderObject {
  PyObject_HEAD
  tl::Recorder* recorder;
};

tl::Recorder* recorder_of(PyObject* self) { return ((RecorderObject*)self)->recorder; }

PyObject* recorder_new(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = (RecorderObject*)allocate(type);
  if (self) self->recorder = new tl::Recorder();
  return (PyObject*)self;
}

void recorder_dealloc(PyObject* self) {
  delete recorder_of(self);
  release(self);
}

PyObject* recorder_open_ring(PyObject* self, PyObject* args, PyObject* kwargs) {
  tl::Recorder* r = recorder_of(self);
  if (!parse_ring(args, kwargs, &r->ring, &r->epoch_ns)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* recorder_connect(PyObject* self, PyObject* args, PyObject* kwargs) {
  tl::Recorder* r = recorder_of(self);
  static const char* names[] = {"describe",    "classify_code", "make_site",  "on_hit",
                                "on_sink",     "on_failure",    "tensor_kind", "sequence_nr",
                                "current_node", "tensor_type",  "parameter_type", nullptr};
  PyObject* o[11];
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOOOOOO", (char**)names, &o[0], &o[1],
                                   &o[2], &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9],
                                   &o[10])) {
    return nullptr;
  }
  r->describe.set(o[0]);
  r->places.set_classifier(o[1]);
  r->make_site.set(o[2]);
  r->on_hit.set(o[3]);
  r->on_sink.set(o[4]);
  r->on_failure.set(o[5]);
  r->tensor_kind.set(o[6]);
  r->sequence_nr.set(o[7]);
  r->current_node.set(o[8]);
  r->tensor_type.set(o[9]);
  r->parameter_type.set(o[10]);
  return PyBool_FromLong(r->bind_exchange());
}

PyObject* recorder_dispatch(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n < 2) {
    PyErr_SetString(PyExc_TypeError, "__torch_dispatch__ takes func, types, args, kwargs");
    return nullptr;
  }
  static PyObject* nothing = PyTuple_New(0);
  PyObject* positional = n > 2 ? args[2] : nothing;
  PyObject* keywords = n > 3 && args[3] != Py_None ? args[3] : nullptr;
  try {
    return recorder_of(self)->dispatch(args[0], positional, keywords);
  } catch (...) {
    // Out of memory in our tables: the op still runs if it has not.
    if (!PyErr_Occurred()) PyErr_NoMemory();
    return nullptr;
  }
}

PyObject* recorder_value_id(PyObject* self, PyObject* tensor) {
  return PyLong_FromLongLong(recorder_of(self)->value_id(tensor));
}

PyObject* recorder_wrote(PyObject* self, PyObject* args) {
  PyObject* tensors;
  long long op_id;
  int only_unknown = 0;
  if (!PyArg_ParseTuple(args, "O!L|p", &PyList_Type, &tensors, &op_id, &only_unknown)) {
    return nullptr;
  }
  return PyLong_FromLong(recorder_of(self)->wrote(tensors, op_id, only_unknown != 0));
}

PyObject* recorder_record_update(PyObject* self, PyObject* args) {
  PyObject *parameters, *gradients;
  int site;
  if (!PyArg_ParseTuple(args, "O!O!i", &PyList_Type, &parameters, &PyList_Type, &gradients,
                        &site)) {
    return nullptr;
  }
  const int first_bad = recorder_of(self)->record_update(parameters, gradients, site);
  return PyErr_Occurred() ? nullptr : PyLong_FromLong(first_bad);
}

PyObject* recorder_adopt(PyObject* self, PyObject* args) {
  PyObject* tensor;
  long long value_id;
  if (!PyArg_ParseTuple(args, "OL", &tensor, &value_id)) return nullptr;
  recorder_of(self)->adopt(tensor, value_id);
  Py_RETURN_NONE;
}

PyObject* recorder_reserve(PyObject* self, PyObject*) {
  return PyLong_FromUnsignedLongLong(recorder_of(self)->ring.reserve());
}

PyObject* recorder_reserve_op_id(PyObject* self, PyObject*) {
  return PyLong_FromLongLong(recorder_of(self)->ring.reserve_op_id());
}

PyObject* recorder_resume(PyObject* self, PyObject*) {
  recorder_of(self)->resume();
  Py_RETURN_NONE;
}

PyObject* recorder_forget_sites(PyObject* self, PyObject*) {
  recorder_of(self)->forget_sites();
  Py_RETURN_NONE;
}

PyObject* recorder_close(PyObject* self, PyObject*) {
  recorder_of(self)->close();
  Py_RETURN_NONE;
}

PyMethodDef recorder_methods[] = {
    {"__torch_dispatch__", (PyCFunction)(void (*)())recorder_dispatch, METH_FASTCALL,
     "__torch_dispatch__(func, types, args=(), kwargs=None): run the op and record it."},
    {"open_ring", (PyCFunction)(void (*)())recorder_open_ring, METH_VARARGS | METH_KEYWORDS,
     "open_ring(record_address, capacity, head_address, sealed_address, first_op_id=0, "
     "epoch_monotonic_ns=0, stream=False, block=False, op_id_address=0)"},
    {"connect", (PyCFunction)(void (*)())recorder_connect, METH_VARARGS | METH_KEYWORDS,
     "Set what the recorder calls; False if tensors cannot be read without the framework."},
    {"value_id", recorder_value_id, METH_O, "Return the id of the value a tensor holds, or -1."},
    {"wrote", recorder_wrote, METH_VARARGS,
     "wrote(tensors, op_id, only_unknown=False): the tensors now hold that op's values."},
    {"record_update", recorder_record_update, METH_VARARGS,
     "record_update(parameters, gradients, site_id) -> index of the first bad parameter or -1."},
    {"adopt", recorder_adopt, METH_VARARGS, "adopt(tensor, value_id): it holds that value."},
    {"reserve", recorder_reserve, METH_NOARGS, "Take the next ring position."},
    {"reserve_op_id", recorder_reserve_op_id, METH_NOARGS, "Take the next op id."},
    {"resume", recorder_resume, METH_NOARGS, "Ops ran on this thread that were not seen."},
    {"forget_sites", recorder_forget_sites, METH_NOARGS, "Module identities changed meaning."},
    {"close", recorder_close, METH_NOARGS, "Let go of every callable and of the ring."},
    {nullptr, nullptr, 0, nullptr}};

enum Field { STEP, PHASE, MUTED, CHECK, OPS, HITS, FAILURES, DROPPED };

PyObject* recorder_get(PyObject* self, void* which) {
  const tl::Recorder* r = recorder_of(self);
  switch ((Field)(intptr_t)which) {
    case STEP: return PyLong_FromLongLong(r->step);
    case PHASE: return PyLong_FromLong(r->phase);
    case MUTED: return PyBool_FromLong(r->muted);
    case CHECK: return PyBool_FromLong(r->check);
    case OPS: return PyLong_FromLongLong(r->ops);
    case HITS: return PyLong_FromLongLong(r->hits);
    case FAILURES: return PyLong_FromLongLong(r->failures);
    default: return PyLong_FromLongLong(r->ring.dropped());
  }
}

int recorder_set(PyObject* self, PyObject* value, void* which) {
  tl::Recorder* r = recorder_of(self);
  const long long number = value ? PyLong_AsLongLong(value) : 0;
  if (PyErr_Occurred()) return -1;
  switch ((Field)(intptr_t)which) {
    case STEP: r->step = number; break;
    case PHASE: r->phase = (int)number; break;
    case MUTED: r->muted = number != 0; break;
    default: r->check = number != 0; break;
  }
  return 0;
}

PyGetSetDef recorder_fields[] = {
    {"step", recorder_get, recorder_set, "Step of the ops to come.", (void*)STEP},
    {"phase", recorder_get, recorder_set, "Phase outside backward; 0 = forward.", (void*)PHASE},
    {"muted", recorder_get, recorder_set, "Run ops without recording them.", (void*)MUTED},
    {"check", recorder_get, recorder_set, "Look for non-finite outputs.", (void*)CHECK},
    {"ops", recorder_get, nullptr, "Ops seen so far.", (void*)OPS},
    {"hits", recorder_get, nullptr, "Ops with a non-finite output so far.", (void*)HITS},
    {"failures", recorder_get, nullptr, "Errors in the recorder's callables.", (void*)FAILURES},
    {"dropped", recorder_get, nullptr, "Records lost to a full ring.", (void*)DROPPED},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot recorder_slots[] = {
    {Py_tp_new, (void*)recorder_new},
    {Py_tp_dealloc, (void*)recorder_dealloc},
    {Py_tp_methods, recorder_methods},
    {Py_tp_getset, recorder_fields},
    {Py_tp_doc, (void*)"Base of a dispatch mode that records every op in C."},
    {0, nullptr}};
PyType_Spec recorder_spec = {"tracelens.stats._native.Recorder", sizeof(RecorderObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, recorder_slots};

PyMethodDef module_methods[] = {
    {"check", check, METH_O,
     "check(x) -> 1 if x holds a NaN or Inf, 0 if not, -1 if it cannot be read here."},
    {"first_nonfinite", first_nonfinite, METH_O,
     "first_nonfinite(list) -> index of the first tensor with a NaN or Inf, or -1."},
    {"stats", stats, METH_O,
     "stats(x) -> (numel, nan, posinf, neginf, zero, finite, min, max, mean, std, l2) or None."},
    {"first_bad", first_bad, METH_VARARGS,
     "first_bad(x, wanted=4) -> row-major indices of the first non-finite elements."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "tracelens.stats._native",
                      "Checks, statistics and ring writers in C.", -1, module_methods,
                      nullptr, nullptr, nullptr, nullptr};

bool add_type(PyObject* m, const char* name, PyType_Spec* spec) {
  PyObject* type = PyType_FromSpec(spec);
  if (!type) return false;
  if (PyModule_AddObject(m, name, type) == 0) return true;
  Py_DECREF(type);
  return false;
}

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  PyObject* m = PyModule_Create(&module);
  if (!m) return nullptr;
  if (!add_type(m, "Emitter", &emitter_spec) || !add_type(m, "Recorder", &recorder_spec)) {
    Py_DECREF(m);
    return nullptr;
  }
  return m;
}
