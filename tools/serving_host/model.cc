#include "model.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tensorflow/cc/saved_model/util.h"
#include "tensorflow/core/framework/tensor_shape.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/errors.h"
#include "tensorflow/core/public/session.h"

namespace serving_host {
namespace {

using tensorflow::SignatureDef;
using tensorflow::Tensor;
using tensorflow::TensorInfo;

constexpr char kServe[] = "serve";
constexpr char kInitSignature[] = "__saved_model_init_op";

template <typename Map>
std::string Names(const Map& map) {
  std::vector<std::string> names;
  for (const auto& entry : map) {
    if (entry.first != kInitSignature) names.push_back(entry.first);
  }
  std::sort(names.begin(), names.end());
  return absl::StrJoin(names, ", ");
}

absl::Status CheckTensor(const std::string& name, const TensorInfo& wanted,
                         const Tensor& found) {
  tensorflow::PartialTensorShape shape(wanted.tensor_shape());
  if (found.dtype() == wanted.dtype() && shape.IsCompatibleWith(found.shape())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("input '", name, "' must be ", DataTypeString(wanted.dtype()), " ",
                   shape.DebugString(), ". Found: ", DataTypeString(found.dtype()), " ",
                   found.shape().DebugString()));
}

}  // namespace

absl::Status Model::Load(const std::string& folder,
                         const std::vector<std::string>& op_libraries) {
  for (const std::string& library : op_libraries) {
    void* handle = nullptr;
    TF_RETURN_IF_ERROR(
        tensorflow::Env::Default()->LoadDynamicLibrary(library.c_str(), &handle));
  }
  absl::Status status =
      tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(),
                                 folder, {kServe}, &bundle_);
  if (absl::StrContains(status.message(), "Op type not registered")) {
    return absl::NotFoundError(absl::StrCat(
        folder, " needs a library of ops that --ops must name: ", status.message()));
  }
  return status;
}

absl::StatusOr<NamedTensors> Model::Predict(const Request& request) const {
  const auto& signatures = bundle_.GetSignatures();
  auto found = signatures.find(request.signature);
  if (found == signatures.end()) {
    // FAILED_PRECONDITION in TF Serving, but the fault is the request's.
    return absl::InvalidArgumentError(
        absl::StrCat("signature '", request.signature,
                     "' is unknown; there are: ", Names(signatures)));
  }
  const SignatureDef& signature = found->second;
  NamedTensors feeds;
  // TF Serving's own check of the names, and its reading of the tensors.
  TF_RETURN_IF_ERROR(
      tensorflow::saved_model::GetInputValues(signature, request.inputs, feeds));
  if (is_checked_) TF_RETURN_IF_ERROR(CheckTensors(signature, feeds));
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<Tensor> tensors;
  TF_RETURN_IF_ERROR(bundle_.GetSession()->Run(feeds, fetches, {}, &tensors));
  NamedTensors outputs;
  for (size_t i = 0; i < names.size(); ++i) {
    outputs.emplace_back(names[i], std::move(tensors[i]));
  }
  return outputs;
}

absl::Status Model::CheckTensors(const SignatureDef& signature,
                                 const NamedTensors& feeds) const {
  for (const auto& [name, info] : signature.inputs()) {
    for (const auto& [feed, tensor] : feeds) {
      if (feed == info.name()) {
        TF_RETURN_IF_ERROR(CheckTensor(name, info, tensor));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Model::OnlyStringInput(const std::string& signature) const {
  const auto& signatures = bundle_.GetSignatures();
  auto found = signatures.find(signature);
  if (found == signatures.end()) {
    return absl::NotFoundError(
        absl::StrCat("no signature '", signature, "'; there are: ", Names(signatures)));
  }
  const auto& inputs = found->second.inputs();
  const TensorInfo* info = inputs.size() == 1 ? &inputs.begin()->second : nullptr;
  if (info == nullptr || info->dtype() != tensorflow::DT_STRING ||
      info->tensor_shape().dim_size() != 1) {
    return absl::NotFoundError(absl::StrCat(
        "signature '", signature, "' takes more than one string: ", Names(inputs)));
  }
  return inputs.begin()->first;
}

}  // namespace serving_host
