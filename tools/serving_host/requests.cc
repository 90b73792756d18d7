#include "requests.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "tensorflow/core/lib/io/record_reader.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/errors.h"
#include "xla/tsl/platform/statusor.h"

namespace serving_host {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Numbers of fields in tensorflow_serving/apis: prediction_log.proto, predict.proto,
// model.proto. Those protos are not in the tensorflow wheel.
enum LogField { kPredictLog = 6 };
enum PredictLogField { kRequest = 1 };
enum PredictRequestField { kModelSpec = 1, kInputs = 2 };
enum ModelSpecField { kSignatureName = 3 };
enum MapEntryField { kKey = 1, kValue = 2 };

// (number, bytes) of the fields of a message that are strings or messages themselves.
using Fields = std::vector<std::pair<int, absl::string_view>>;

bool ReadFields(absl::string_view bytes, Fields* fields) {
  CodedInputStream stream(reinterpret_cast<const uint8_t*>(bytes.data()),
                          static_cast<int>(bytes.size()));
  while (uint32_t tag = stream.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) !=
        WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&stream, tag)) return false;
      continue;
    }
    uint32_t size = 0;
    if (!stream.ReadVarint32(&size)) return false;
    absl::string_view rest = bytes.substr(stream.CurrentPosition());
    if (!stream.Skip(static_cast<int>(size))) return false;
    fields->emplace_back(WireFormatLite::GetTagFieldNumber(tag), rest.substr(0, size));
  }
  return stream.ConsumedEntireMessage();
}

absl::StatusOr<Fields> ParseFields(absl::string_view bytes, const char* message) {
  Fields fields;
  if (!ReadFields(bytes, &fields)) {
    return absl::InvalidArgumentError(
        absl::StrCat("malformed record: its ", message, " can't be parsed"));
  }
  return fields;
}

// The last field of that number, as protobuf takes a field that is there twice.
std::optional<absl::string_view> Find(const Fields& fields, int number) {
  for (auto field = fields.rbegin(); field != fields.rend(); ++field) {
    if (field->first == number) return field->second;
  }
  return std::nullopt;
}

absl::StatusOr<Fields> ParseMessage(const Fields& fields, int number,
                                    const char* message) {
  std::optional<absl::string_view> bytes = Find(fields, number);
  if (!bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the record has no ", message));
  }
  return ParseFields(*bytes, message);
}

absl::Status AddInput(absl::string_view entry, Request* request) {
  TF_ASSIGN_OR_RETURN(Fields fields, ParseFields(entry, "entry of inputs"));
  std::string name(Find(fields, kKey).value_or(""));
  tensorflow::TensorProto& tensor = request->inputs[name];
  if (!tensor.ParseFromString(Find(fields, kValue).value_or(""))) {
    return absl::InvalidArgumentError(
        absl::StrCat("input '", name, "' holds no TensorProto"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Request> ParseRecord(absl::string_view record) {
  TF_ASSIGN_OR_RETURN(Fields log, ParseFields(record, "PredictionLog"));
  TF_ASSIGN_OR_RETURN(Fields predict_log,
                      ParseMessage(log, kPredictLog, "predict_log"));
  TF_ASSIGN_OR_RETURN(Fields fields, ParseMessage(predict_log, kRequest, "request"));
  Request request;
  if (Find(fields, kModelSpec)) {
    TF_ASSIGN_OR_RETURN(Fields spec, ParseMessage(fields, kModelSpec, "model_spec"));
    absl::string_view name = Find(spec, kSignatureName).value_or("");
    if (!name.empty()) request.signature = std::string(name);
  }
  for (const auto& [number, bytes] : fields) {
    if (number == kInputs) TF_RETURN_IF_ERROR(AddInput(bytes, &request));
  }
  return request;
}

absl::StatusOr<std::vector<tensorflow::tstring>> ReadRecords(const std::string& path) {
  std::unique_ptr<tensorflow::RandomAccessFile> file;
  TF_RETURN_IF_ERROR(tensorflow::Env::Default()->NewRandomAccessFile(path, &file));
  tensorflow::io::SequentialRecordReader reader(file.get());
  std::vector<tensorflow::tstring> records;
  while (true) {
    tensorflow::tstring record;
    absl::Status status = reader.ReadRecord(&record);
    if (absl::IsOutOfRange(status)) return records;
    TF_RETURN_IF_ERROR(status);
    records.push_back(std::move(record));
  }
}

}  // namespace serving_host
