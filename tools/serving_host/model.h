// A served version: its session, and what a request of TF Serving's Predict does to it.

#ifndef SERVING_HOST_MODEL_H_
#define SERVING_HOST_MODEL_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "requests.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"

namespace serving_host {

using NamedTensors = std::vector<std::pair<std::string, tensorflow::Tensor>>;

class Model {
 public:
  // is_checked: whether dtypes and shapes are held against the signature. TF Serving
  // leaves that to the graph.
  explicit Model(bool is_checked) : is_checked_(is_checked) {}

  // Loads libraries of ops, then the SavedModel of a version's folder.
  absl::Status Load(const std::string& folder,
                    const std::vector<std::string>& op_libraries);

  // What a request is answered, by name. Any number of threads
  // may call it.
  //
  // INVALID_ARGUMENT if the signature or an input is unknown, an input is missing or
  // malformed, or its dtype or shape is not that of the signature. Errors of the graph
  // are as TensorFlow gives them.
  absl::StatusOr<NamedTensors> Predict(const Request& request) const;

  // The name of a signature's input. NOT_FOUND if the signature is missing, or takes
  // anything but one input of strings (b,).
  absl::StatusOr<std::string> OnlyStringInput(const std::string& signature) const;

 private:
  absl::Status CheckTensors(const tensorflow::SignatureDef& signature,
                            const NamedTensors& feeds) const;

  const bool is_checked_;
  tensorflow::SavedModelBundleLite bundle_;
};

}  // namespace serving_host

#endif  // SERVING_HOST_MODEL_H_
