// What is known of an operator before it runs: its schema's facts and its class, looked up once.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "record.h"

namespace tracelens {

struct OpInfo {
  explicit OpInfo(std::string op_name) : name(std::move(op_name)) {}
  std::string name;
  uint16_t flags = 0;          // OpFlag bits that always hold (HARMLESS, GARBAGE, CONSTANT, VIEW, INPLACE)
  bool composite = false;      // decomposes into other operators
  bool opaque = false;         // what runs below it is its own implementation
  bool view = false;
  bool scalar_read = false;    // item(): the user looks at the value
  bool tests = false;          // isfinite(): the user asks whether a value is bad
  bool ones_like = false;      // autograd starts a backward with it
  bool outside = false;        // its output holds what Python or a file put there
  bool cast = false;           // harmless unless the dtype changes
  bool arithmetic_write = false;  // add_, mul_, addcdiv_ …: what an update does to a parameter
  bool by_string = false;      // not an operator: a Python autograd.Function, a user's label
  // How often it ran and how many events its implementation sent meanwhile, for a while.
  mutable std::atomic<int32_t> calls{0}, below{0};
  std::vector<int> written;    // indices of arguments it writes, where it returns nothing
};

class OpTable {
 public:
  using Classifier = uint16_t (*)(const std::string& name);

  const OpInfo& find(const at::RecordFunction& rf, Classifier classify) {
    const char* name = rf.name();
    Cached& c = cache_[(reinterpret_cast<uintptr_t>(name) >> 4) % cache_.size()];
    if (c.key == name && std::strcmp(c.info->name.c_str(), name) == 0 &&
        std::strcmp(c.overload.c_str(), rf.overload_name()) == 0)
      return *c.info;
    const OpInfo& info = find_slow(rf, classify);
    c.key = name;
    c.info = &info;
    c.overload = rf.overload_name();
    return info;
  }

 private:
  struct Cached {
    const char* key = nullptr;
    const OpInfo* info = nullptr;
    std::string overload;
  };
  std::vector<Cached> cache_ = std::vector<Cached>(1024);

  static const OpInfo& find_slow(const at::RecordFunction& rf, Classifier classify) {
    static std::mutex mutex;
    static auto* known = new std::unordered_map<std::string, std::unique_ptr<OpInfo>>();
    const std::string name = rf.name(), overload = rf.overload_name();
    const std::string key = name + "." + overload;
    {
      std::lock_guard<std::mutex> lock(mutex);
      auto it = known->find(key);
      if (it != known->end()) return *it->second;
    }
    auto info = describe(name, overload);
    info->flags |= classify(name);  // takes the GIL: the lock must not be held
    std::lock_guard<std::mutex> lock(mutex);
    auto& slot = (*known)[key];
    if (!slot) slot = std::move(info);
    return *slot;
  }

  static std::unique_ptr<OpInfo> describe(const std::string& name, const std::string& overload) {
    auto info = std::make_unique<OpInfo>(name);
    auto handle = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!handle) {
      info->by_string = true;
      info->composite = true;
      info->flags |= kComposite;
      return info;
    }
    info->composite = handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    if (info->composite) info->flags |= kComposite;
    info->opaque = !info->composite && name.rfind("aten::", 0) == 0;
    const auto& schema = handle->schema();
    bool writes = false, aliases = false;
    for (const auto& argument : schema.arguments())
      if (argument.alias_info() && argument.alias_info()->isWrite()) writes = true;
    for (const auto& result : schema.returns())
      if (result.alias_info() && !result.alias_info()->isWrite()) aliases = true;
    if (writes) info->flags |= kInplace;
    if (schema.returns().empty())
      for (size_t i = 0; i < schema.arguments().size(); ++i)
        if (auto* alias = schema.arguments()[i].alias_info(); alias && alias->isWrite())
          info->written.push_back(int(i));
    info->view = aliases && !writes;
    if (info->view) info->flags |= kView;
    info->scalar_read = name == "aten::_local_scalar_dense";
    // torch.tensor ends with lift_fresh; torch.load puts a file's storage under an empty tensor.
    info->outside = name == "aten::lift_fresh" || name == "aten::set_";
    if (info->outside) {
      info->view = false;
      info->composite = false;
      info->flags = 0;
    }
    info->tests = name == "aten::isfinite" || name == "aten::isnan" || name == "aten::isinf";
    info->ones_like = name == "aten::ones_like";
    if (writes)
      for (const char* prefix : {"add", "sub", "mul", "div", "lerp", "_foreach_", "_fused_"})
        if (name.rfind(std::string("aten::") + prefix, 0) == 0) info->arithmetic_write = true;
    info->cast = name == "aten::copy_" || name == "aten::_to_copy";
    return info;
  }
};

}  // namespace tracelens
