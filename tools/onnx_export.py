"""Hugging Face's text classifier in a folder as an ONNX file.

    python -m tools.onnx_export FOLDER FILE

`tools.benchmark serving` runs it in a process of its own, in the environment of the
reference tests. Nothing of ours is imported: PyTorch crashes beside TensorFlow.
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification

# Any batch of two does: both axes of the file are free.
EXAMPLE_SHAPE = (2, 40)


class Logits(torch.nn.Module):
    """The model from ids and mask to its logits alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what `save_to_huggingface` wrote")
    parser.add_argument("file", help="ONNX file to write")
    arguments = parser.parse_args(argv)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.folder)
    ones = torch.ones(EXAMPLE_SHAPE, dtype=torch.int64)
    free = {0: "batch", 1: "length"}
    # Not dynamo=True: of DeBERTa, PyTorch 2.14 then writes a model with other logits.
    torch.onnx.export(
        Logits(model).eval(),
        (ones, ones),
        arguments.file,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": free, "attention_mask": free},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
