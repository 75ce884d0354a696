// Reads what Kineto recorded into columns: see tracelens_torch/profile_events.py.
#include <pybind11/numpy.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/csrc/profiler/collection.h>
#include <torch/csrc/profiler/util.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace py = pybind11;
using libkineto::ActivityType;
using torch::autograd::profiler::KinetoEvent;
using torch::autograd::profiler::ProfilerResult;
namespace impl = torch::profiler::impl;

namespace {

// The numbers are those of profile_events.Kind.
enum Kind : uint8_t {
  kOp, kAnnotation, kDeviceAnnotation, kMemcpy, kMemset, kKernel, kRuntime, kPython, kOverhead,
  kSync, kOther, kSkipped
};

Kind kind_of(uint8_t activity) {
  switch (ActivityType(activity)) {
    case ActivityType::CPU_OP: return kOp;
    case ActivityType::USER_ANNOTATION: return kAnnotation;
    case ActivityType::GPU_USER_ANNOTATION: return kDeviceAnnotation;
    case ActivityType::GPU_MEMCPY: return kMemcpy;
    case ActivityType::GPU_MEMSET: return kMemset;
    case ActivityType::CONCURRENT_KERNEL: return kKernel;
    case ActivityType::CUDA_RUNTIME:
    case ActivityType::CUDA_DRIVER:
    case ActivityType::MTIA_RUNTIME:
    case ActivityType::XPU_RUNTIME:
    case ActivityType::XPU_DRIVER:
    case ActivityType::PRIVATEUSE1_RUNTIME:
    case ActivityType::PRIVATEUSE1_DRIVER: return kRuntime;
    case ActivityType::PYTHON_FUNCTION: return kPython;
    case ActivityType::OVERHEAD: return kOverhead;
    case ActivityType::CUDA_SYNC: return kSync;
    case ActivityType::CPU_INSTANT_EVENT:
    case ActivityType::EXTERNAL_CORRELATION:
    case ActivityType::CUDA_EVENT: return kSkipped;
    default: return kOther;
  }
}

// Distinct texts and their numbers.
class Numbers {
 public:
  int64_t of(std::string text) {
    auto [it, fresh] = known_.emplace(std::move(text), int64_t(texts_.size()));
    if (fresh) texts_.push_back(&it->first);
    return it->second;
  }
  py::list texts() const {
    py::list out;
    for (const std::string* text : texts_) {
      // What is no UTF-8 must not raise: names come from C++ symbols and files of others.
      PyObject* made = PyUnicode_DecodeUTF8(text->data(), Py_ssize_t(text->size()), "replace");
      if (!made) throw py::error_already_set();
      out.append(py::reinterpret_steal<py::str>(made));
    }
    return out;
  }

 private:
  std::unordered_map<std::string, int64_t> known_;
  std::vector<const std::string*> texts_;
};

// The texts are those of Kineto's own JSON files, so that a live profile and a file read alike.
std::string shapes_of(const KinetoEvent& event) {
  const auto shapes = event.structuredInputShapes();
  return impl::variantShapesToStr(std::vector<impl::shape>(shapes.begin(), shapes.end()));
}

std::string dtypes_of(const KinetoEvent& event) {
  const auto types = event.dtypes();
  return impl::strListToStr(std::vector<std::string>(types.begin(), types.end()));
}

std::string values_of(const KinetoEvent& event) {
  const auto values = event.concreteInputs();
  return impl::ivalueListToStr(std::vector<c10::IValue>(values.begin(), values.end()));
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  py::array_t<T> out(py::ssize_t(values.size()));
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

struct Allocation {
  int64_t t_ns, address, size, total, reserved, device, event;
};

void find_allocations(const impl::Result& node, int64_t around,
                      const std::unordered_map<int64_t, int64_t>& row_of, Numbers& devices,
                      std::vector<Allocation>& out) {
  if (node.tag() == impl::EventType::Allocation) {
    const auto& made = std::get<impl::ExtraFields<impl::EventType::Allocation>>(node.extra_fields_);
    out.push_back({node.start_time_ns_, int64_t(reinterpret_cast<intptr_t>(made.ptr_)),
                   made.alloc_size_, int64_t(made.total_allocated_),
                   int64_t(made.total_reserved_), devices.of(made.device().str()), around});
    return;
  }
  if (node.tag() == impl::EventType::TorchOp) {
    const auto it = row_of.find(int64_t(node.correlationID()));
    if (it != row_of.end()) around = it->second;
  }
  for (const auto& child : node.children_) find_allocations(*child, around, row_of, devices, out);
}

py::dict read_result(const ProfilerResult& result) {
  const auto& events = result.events();
  const size_t n = events.size();
  std::vector<uint8_t> kind(n);
  std::vector<int64_t> name(n), start(n), end(n), tid(n), device(n), corr(n), linked(n), seq(n),
      scope(n), thread(n), fwd_thread(n), shapes(n, -1), dtypes(n, -1), values(n, -1), meta(n, -1);
  Numbers names, texts, devices;
  std::unordered_map<int64_t, int64_t> row_of;
  for (size_t i = 0; i < n; ++i) {
    const KinetoEvent& event = events[i];
    kind[i] = kind_of(event.activityType());
    name[i] = names.of(event.name());
    start[i] = int64_t(event.startNs());
    end[i] = start[i] + int64_t(event.durationNs());
    tid[i] = event.deviceResourceId();
    device[i] = -1;
    corr[i] = int64_t(event.correlationId());
    linked[i] = int64_t(event.linkedCorrelationId());
    seq[i] = event.sequenceNr();
    scope[i] = event.scope();
    thread[i] = int64_t(event.startThreadId());
    fwd_thread[i] = int64_t(event.fwdThreadId());
    switch (kind[i]) {
      case kOp:
        if (event.hasShapes() && !event.shapes().empty()) {
          shapes[i] = texts.of(shapes_of(event));
          if (event.hasTypes()) dtypes[i] = texts.of(dtypes_of(event));
          if (event.hasConcreteInputs()) values[i] = texts.of(values_of(event));
        }
        [[fallthrough]];
      case kAnnotation:
        row_of.emplace(corr[i], int64_t(i));
        break;
      case kMemcpy:
      case kMemset:
      case kKernel:
      case kDeviceAnnotation:
      case kSync:
        device[i] = event.deviceIndex();
        [[fallthrough]];
      case kRuntime: {
        std::string told = event.metadataJson();
        if (!told.empty()) {
          if (told[0] != '{') told = "{" + told + "}";
          meta[i] = texts.of(std::move(told));
        }
        break;
      }
      default:
        break;
    }
  }
  std::vector<Allocation> found;
  for (const auto& root : result.event_tree()) find_allocations(*root, -1, row_of, devices, found);
  std::stable_sort(found.begin(), found.end(),
                   [](const Allocation& a, const Allocation& b) { return a.t_ns < b.t_ns; });
  const auto column = [&](int64_t Allocation::*field) {
    std::vector<int64_t> out(found.size());
    for (size_t i = 0; i < found.size(); ++i) out[i] = found[i].*field;
    return array_of(out);
  };
  py::dict allocations;
  allocations["t_ns"] = column(&Allocation::t_ns);
  allocations["address"] = column(&Allocation::address);
  allocations["size_bytes"] = column(&Allocation::size);
  allocations["total_bytes"] = column(&Allocation::total);
  allocations["reserved_bytes"] = column(&Allocation::reserved);
  allocations["device"] = column(&Allocation::device);
  allocations["devices"] = devices.texts();
  allocations["event"] = column(&Allocation::event);
  py::dict out;
  out["kind"] = array_of(kind);
  out["name"] = array_of(name);
  out["start_ns"] = array_of(start);
  out["end_ns"] = array_of(end);
  out["tid"] = array_of(tid);
  out["device"] = array_of(device);
  out["corr"] = array_of(corr);
  out["linked"] = array_of(linked);
  out["seq"] = array_of(seq);
  out["scope"] = array_of(scope);
  out["thread"] = array_of(thread);
  out["fwd_thread"] = array_of(fwd_thread);
  out["shapes"] = array_of(shapes);
  out["dtypes"] = array_of(dtypes);
  out["values"] = array_of(values);
  out["meta"] = array_of(meta);
  out["names"] = names.texts();
  out["texts"] = texts.texts();
  out["allocations"] = allocations;
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("read", &read_result); }
