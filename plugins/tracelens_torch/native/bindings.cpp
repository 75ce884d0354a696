// The observer's face to Python.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

// One translation unit: torch's headers take most of the time to compile.
#include "observer.cpp"
#include "collectives.cpp"
#include "outside.cpp"
#include "records.cpp"
#include "sinks.cpp"

namespace py = pybind11;
using namespace tracelens;

namespace {

PyObject* replace(PyObject*& slot, const py::object& value) {
  PyObject* old = slot;
  slot = value.is_none() ? nullptr : value.inc_ref().ptr();
  return old;
}

std::vector<at::Tensor> tensors_of(const py::handle& list) {
  std::vector<at::Tensor> out;
  for (py::handle item : list)
    if (THPVariable_Check(item.ptr())) out.push_back(THPVariable_Unpack(item.ptr()));
  return out;
}

py::dict to_dict(const Sink& s) {
  py::dict stats;
  stats["numel"] = s.stats.numel;
  stats["nan"] = s.stats.nan;
  stats["posinf"] = s.stats.posinf;
  stats["neginf"] = s.stats.neginf;
  const bool any = s.stats.finite > 0;
  stats["vmin"] = any ? py::cast(s.stats.min) : py::none();
  stats["vmax"] = any ? py::cast(s.stats.max) : py::none();
  py::list bad;
  for (int64_t i : s.first_bad)
    if (i >= 0) bad.append(i);
  py::dict d;
  d["sink"] = s.kind;
  d["name"] = s.name;
  d["step"] = s.step;
  d["op_id"] = s.op_id;
  d["value_id"] = s.value_id;
  d["dtype"] = s.dtype;
  d["shape"] = s.shape;
  d["stats"] = stats;
  d["first_bad"] = bad;
  d["t_ns"] = s.t_ns;
  if (s.tensor.defined()) d["tensor"] = py::cast(s.tensor);
  return d;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  auto o = [] { return &Observer::get(); };
  m.def("open_ring", [o](uintptr_t records, uint64_t capacity, uintptr_t head, uintptr_t sealed,
                         uintptr_t op_ids, bool stream, bool block, int64_t epoch_ns) {
    o()->ring.open(records, capacity, head, sealed, op_ids, stream, block);
    o()->epoch_ns = epoch_ns;
  });
  m.def("close_ring", [o] { o()->ring.close(); });
  m.def("set_functions", [o](py::object classify_op, py::object classify_code, py::object make_site,
                             py::object intern, py::object on_sink) {
    Py_XDECREF(replace(o()->py_classify_op, classify_op));
    Py_XDECREF(replace(o()->py_classify_code, classify_code));
    Py_XDECREF(replace(o()->py_make_site, make_site));
    Py_XDECREF(replace(o()->py_intern, intern));
    replace(o()->py_on_sink, on_sink);  // a pending call may still hold the old one: it is kept
  });
  m.def("start", [o](bool ops_level, bool check, bool thorough) {
    Settings s;
    s.thorough = thorough;
    s.ops_level = ops_level;
    s.check = check;
    py::gil_scoped_release release;
    o()->start(s);
  });
  m.def("stop", [o] {
    py::gil_scoped_release release;
    o()->stop();
  });
  m.def("set_enabled", [o](bool on) { o()->enabled = on; });
  m.def("set_ops_level", [o](bool on) { o()->settings.ops_level = on; });
  m.def("failures", [o] { return o()->failures.load(std::memory_order_relaxed); });
  m.def("set_step", [o](int64_t step) { o()->step = step; });
  m.def("set_wake", [o](bool on) { o()->wake_on_sink = on; });
  m.def("set_phase", [](int phase) { observer_phase(uint8_t(phase)); });
  m.def("mute_thread", [](bool muted) { return observer_mute(muted); });
  m.def("hush_thread", [](bool hushed) {
    if (profiled()) return false;
    at::enableRecordFunction(!hushed);
    return true;
  });
  m.def("reserve", [o] { return o()->ring.reserve(); });
  m.def("reserve_op_id", [o] { return o()->ring.reserve_op_id(); });
  m.def("register_data", [o](py::iterable tensors, int32_t site, bool only_unknown) {
    auto list = tensors_of(tensors);
    return o()->register_data(list, site, only_unknown);
  });
  m.def("check", [o](const std::string& kind, py::iterable tensors, std::vector<std::string> names,
                     int64_t op_id) {
    static const char* kinds[] = {"gradient", "parameter", "tap", "check", "output", "loss", "read", "data"};
    const char* known = "check";
    for (const char* k : kinds)
      if (kind == k) known = k;
    auto list = tensors_of(tensors);
    return o()->check_sinks(known, list, names, op_id);
  });
  m.def("nonfinite", [](py::iterable tensors) {
    int i = 0;
    for (const auto& t : tensors_of(tensors)) {
      if (t.defined() && has_nonfinite(t.unsafeGetTensorImpl())) return i;
      ++i;
    }
    return -1;
  });
  m.def("record_update", [o](py::iterable parameters, const std::string& name) {
    auto written = tensors_of(parameters);
    return o()->record_update(written, name);
  });
  m.def("adopt", [o](py::iterable tensors, py::iterable of) {
    auto to = tensors_of(tensors), from = tensors_of(of);
    for (size_t i = 0; i < to.size() && i < from.size(); ++i) {
      Span span;
      const int64_t id = o()->value_id(from[i]);
      if (id != kNoId && span_of(to[i].unsafeGetTensorImpl(), span)) o()->values.write(span, id, true);
    }
  });
  m.def("value_id", [o](const at::Tensor& t) { return o()->value_id(t); });
  m.def("add_parameters", [o](py::iterable tensors) { o()->add_parameters(tensors_of(tensors)); });
  m.def("take_sinks", [o] {
    py::list out;
    for (const auto& s : o()->take_sinks()) out.append(to_dict(s));
    return out;
  });
  m.def("take_tested", [o] {
    py::list out;
    for (const auto& s : o()->take_tested()) out.append(to_dict(s));
    return out;
  });
  m.def("forget_sites", [o] { o()->forget_sites(); });
  m.def("counters", [o] {
    py::dict d;
    d["hits"] = o()->hits.load();
    d["ops"] = o()->ops_seen.load();
    d["failures"] = o()->failures.load();
    d["dropped"] = o()->ring.dropped();
    d["sinks"] = o()->sinks_pending.load();
    {
      std::lock_guard<std::mutex> lock(o()->failure_mutex);
      d["failure"] = o()->last_failure;
    }
    return d;
  });
  auto c = [] { return &Collectives::get(); };
  m.def("start_collectives", [c](int64_t epoch_ns) {
    py::gil_scoped_release release;
    c()->start(epoch_ns);
  });
  m.def("stop_collectives", [c] {
    py::gil_scoped_release release;
    c()->stop();
  });
  m.def("set_collective_step", [c](int64_t step) { c()->step = step; });
  m.def("collectives_done", [c] { return c()->done.load(std::memory_order_relaxed); });
  m.def("collectives_dropped", [c] { return c()->dropped.load(std::memory_order_relaxed); });
  m.def("take_collectives", [c] {
    py::list out;
    for (const auto& r : c()->take())
      out.append(py::make_tuple(r.index, r.name, r.dtype, r.step, r.start_ns, r.end_ns,
                                r.size_bytes, r.tid));
    return out;
  });
  m.def("hits", [o] { return o()->hits.load(std::memory_order_relaxed); });
  m.def("sinks_pending", [o] { return o()->sinks_pending.load(std::memory_order_relaxed); });
}
