"""Commands beside the trainers: data, vocabularies, conversion, export, the demo."""
