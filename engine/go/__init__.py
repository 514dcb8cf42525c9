"""Go's rules as Ollama depends on them: text/template, the printing of values, JSON, durations, times and text."""
