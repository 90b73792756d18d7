"""One record per data set of a task: where its examples are, how they are scored."""
