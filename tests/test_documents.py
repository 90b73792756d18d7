"""Tables that commands keep in documents."""

import pathlib

import pytest

from deberta_tf.files import UsageError
from tools import ablation_report, documents, evaluation_report, sift_report, tpu_memory

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_what_stands_between_the_marks_is_replaced(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# A\n<!-- t -->\nold\n\n1\n<!-- end of t -->\nafter\n")
    documents.put_table(path, "t", r"| \1 |")
    assert path.read_text() == ("# A\n<!-- t -->\n| \\1 |\n<!-- end of t -->\nafter\n")


@pytest.mark.parametrize(
    "text", ["", "<!-- t -->\n", "<!-- t -->\n<!-- t -->\n<!-- end of t -->\n"]
)
def test_a_document_without_both_marks_is_refused(tmp_path, text):
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(UsageError, match="must have the lines '<!-- t -->' and"):
        documents.put_table(path, "t", "new")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("document", "name", "records", "tool", "table"),
    [
        (
            "results.md",
            "ablation",
            "ablation.jsonl",
            ablation_report,
            ablation_report.tables,
        ),
        (
            "results.md",
            "evaluation",
            "evaluation.jsonl",
            evaluation_report,
            evaluation_report.table,
        ),
        (
            "results.md",
            "sift_study",
            "sift_study.jsonl",
            sift_report,
            sift_report.table,
        ),
        ("tpu.md", "memory", "tpu_memory.jsonl", tpu_memory, tpu_memory.table),
    ],
)
def test_documents_tell_what_the_records_hold(document, name, records, tool, table):
    held = tool.read_records(str(DOCS / records))
    assert held
    text = (DOCS / document).read_text("utf-8")
    assert f"<!-- {name} -->\n{table(held)}\n<!-- end of {name} -->\n" in text
