"""Go as Ollama uses it: text/template, its values and how they are printed, JSON, durations."""
