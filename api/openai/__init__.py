"""The routes of OpenAI's API, and the conversion to and from Ollama's requests."""
