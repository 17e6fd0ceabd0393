"""Where LOGGERS sends what a run measures, besides metrics.json."""
