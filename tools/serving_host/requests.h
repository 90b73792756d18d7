// Requests to TF Serving, as warm-up records hold them.

#ifndef SERVING_HOST_REQUESTS_H_
#define SERVING_HOST_REQUESTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/platform/tstring.h"

namespace serving_host {

struct Request {
  std::string signature = "serving_default";
  google::protobuf::Map<std::string, tensorflow::TensorProto> inputs;
};

// The request of a serialized PredictionLog. INVALID_ARGUMENT if the bytes are none, or
// are another log than that of a prediction.
absl::StatusOr<Request> ParseRecord(absl::string_view record);

// The records of a TFRecord file. DATA_LOSS if one is cut off or its checksum is wrong.
absl::StatusOr<std::vector<tensorflow::tstring>> ReadRecords(const std::string& path);

}  // namespace serving_host

#endif  // SERVING_HOST_REQUESTS_H_
