"""The route of Anthropic's API, and the conversion to and from Ollama's chat."""
