"""What a kind of task is to the trainer: its model, its rows, its answers.

A module each; all have the same functions:

    make_task(setup, load, tokenizer) -> the model, by `load(class, **arguments)`
    encode(setup, task, examples) -> `Encoded`
    answers(setup, outputs, encoded, examples) -> list of dicts, one an example
    score(setup, answers, examples) -> {name: float}

An answer has "id", "prediction" and "scores", as `deberta_tf.submissions` takes them.
"""
