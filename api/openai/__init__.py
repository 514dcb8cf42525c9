"""OpenAI's routes, and the maps to and from Ollama's requests."""
