#include "commands.h"
#include "json_lines.h"
#include "tensorflow/core/platform/errors.h"
#include "xla/tsl/platform/statusor.h"

namespace serving_host {
namespace {

Json::Value AnswerRecord(const Model& model, const tensorflow::tstring& record) {
  absl::StatusOr<Request> request = ParseRecord(record);
  if (!request.ok()) return StatusToJson(request.status());
  absl::StatusOr<NamedTensors> outputs = model.Predict(*request);
  Json::Value line = StatusToJson(outputs.status());
  line["signature"] = request->signature;
  if (outputs.ok()) {
    for (const auto& [name, tensor] : *outputs) {
      line["outputs"][name] = TensorToJson(tensor);
    }
  }
  return line;
}

}  // namespace

absl::Status Replay(const Model& model, const std::string& path) {
  TF_ASSIGN_OR_RETURN(std::vector<tensorflow::tstring> records, ReadRecords(path));
  for (const tensorflow::tstring& record : records) {
    PrintLine(AnswerRecord(model, record));
  }
  return absl::OkStatus();
}

}  // namespace serving_host
