// Answers from a SavedModel by the loader that TF Serving has, without Python.

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/log/globals.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "commands.h"
#include "model.h"
#include "tensorflow/core/platform/errors.h"

namespace serving_host {
namespace {

constexpr char kUsage[] =
    R"(serving_host FOLDER [--ops LIBRARY]... [--unchecked] COMMAND

FOLDER is that of a served version, with saved_model.pb in it. LIBRARY is a file of
ops to load before it: _sentencepiece_tokenizer.so of the tensorflow_text wheel, for
models with a SentencePiece vocabulary. With --unchecked, inputs go to the graph as TF
Serving lets them: without a look at their dtypes and shapes.

  replay FILE
      Answers the records of a TFRecord file of PredictionLog, as warm-up has them:
      a JSON line each.
  answer [--batch COUNT]
      Answers lines of stdin by the signature serving_default, COUNT (1) at a time: a
      JSON line each. Milliseconds a batch to stderr.
  load [--seconds S] [--concurrency N,N,...] FILE
      Sends the requests of FILE again and again from N (1) threads, for S (10)
      seconds each: a JSON line for each N. Resident memory in MiB is that at the
      beginning, each ten seconds, and at the end.
)";

struct Arguments {
  std::string folder, command, file;
  std::vector<std::string> op_libraries;
  bool is_checked = true;
  int batch_size = 1;
  double seconds = 10;
  std::vector<int> concurrencies = {1};
};

absl::Status Invalid(const std::string& flag, const std::string& wanted,
                     const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " must be ", wanted, ". Found: '", found, "'"));
}

absl::Status TakeFlag(const std::string& flag, const std::string& value,
                      Arguments* arguments) {
  if (flag == "--ops") {
    arguments->op_libraries.push_back(value);
  } else if (flag == "--batch" && arguments->command == "answer") {
    if (!absl::SimpleAtoi(value, &arguments->batch_size) || arguments->batch_size < 1) {
      return Invalid(flag, "a positive number of texts", value);
    }
  } else if (flag == "--seconds" && arguments->command == "load") {
    if (!absl::SimpleAtod(value, &arguments->seconds) ||
        !(arguments->seconds > 0 && arguments->seconds < 1e6)) {
      return Invalid(flag, "a positive number of seconds", value);
    }
  } else if (flag == "--concurrency" && arguments->command == "load") {
    arguments->concurrencies.clear();
    for (absl::string_view part : absl::StrSplit(value, ',')) {
      int count = 0;
      if (!absl::SimpleAtoi(part, &count) || count < 1 || count > 1024) {
        return Invalid(flag, "numbers of threads from 1 to 1024", value);
      }
      arguments->concurrencies.push_back(count);
    }
  } else {
    return absl::InvalidArgumentError(absl::StrCat("unknown flag ", flag));
  }
  return absl::OkStatus();
}

absl::StatusOr<Arguments> ParseArguments(int count, char** words) {
  Arguments arguments;
  std::string* places[] = {&arguments.folder, &arguments.command, &arguments.file};
  size_t filled = 0;
  for (int i = 1; i < count; ++i) {
    std::string word = words[i];
    if (word == "--unchecked") {
      arguments.is_checked = false;
    } else if (absl::StartsWith(word, "--")) {
      if (++i == count) {
        return absl::InvalidArgumentError(absl::StrCat(word, " needs a value"));
      }
      TF_RETURN_IF_ERROR(TakeFlag(word, words[i], &arguments));
    } else if (filled < 3) {
      *places[filled++] = word;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("unexpected '", word, "'"));
    }
  }
  bool has_file = arguments.command == "replay" || arguments.command == "load";
  if (!has_file && arguments.command != "answer") {
    return Invalid("COMMAND", "replay, answer or load", arguments.command);
  }
  if (has_file != (filled == 3)) {
    return absl::InvalidArgumentError(
        absl::StrCat(arguments.command, has_file ? " needs a FILE" : " takes no FILE"));
  }
  return arguments;
}

absl::Status Run(const Arguments& arguments) {
  Model model(arguments.is_checked);
  TF_RETURN_IF_ERROR(model.Load(arguments.folder, arguments.op_libraries));
  if (arguments.command == "replay") return Replay(model, arguments.file);
  if (arguments.command == "answer") return Answer(model, arguments.batch_size);
  return Load(model, arguments.file, arguments.seconds, arguments.concurrencies);
}

int Fail(const absl::Status& status, int code) {
  std::cerr << "error: " << absl::StatusCodeToString(status.code()) << ": "
            << status.message() << std::endl;
  return code;
}

int Main(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "--help") {
    std::cout << kUsage;
    return 0;
  }
  absl::StatusOr<Arguments> arguments = ParseArguments(count, words);
  if (!arguments.ok()) {
    std::cerr << kUsage;
    return Fail(arguments.status(), 2);
  }
  // What goes wrong with a request is in its answer. TF_CPP_MIN_LOG_LEVEL=0 tells more.
  if (std::getenv("TF_CPP_MIN_LOG_LEVEL") == nullptr) {
    absl::SetMinLogLevel(absl::LogSeverityAtLeast::kFatal);
  }
  absl::Status status = Run(*arguments);
  return status.ok() ? 0 : Fail(status, 1);
}

}  // namespace
}  // namespace serving_host

int main(int count, char** words) { return serving_host::Main(count, words); }
