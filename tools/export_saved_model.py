"""Exports a fine-tuned preset as a SavedModel that answers raw strings.

python -m tools.export_saved_model --preset PRESET_DIR --output SERVED_DIR
"""

import argparse
import os

from deberta_tf import DebertaTextClassifier, files


def main(argv=None):
    arguments = parse(argv)
    if not os.path.isdir(arguments.preset):
        raise files.UsageError(f"--preset {arguments.preset!r} is not a folder")
    task = DebertaTextClassifier.from_preset(arguments.preset)
    path = task.export_for_serving(arguments.output, version=arguments.version)
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )
    print(f"exported {path}: {size / 1e6:.1f} MB, classes {task.labels}")


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", required=True, help="folder of a fine-tuned text classifier"
    )
    parser.add_argument(
        "--output", required=True, help="folder of served versions, made if missing"
    )
    parser.add_argument(
        "--version", type=int, default=1, help="number of the version's own folder"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    files.run_command(main)
