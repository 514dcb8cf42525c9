"""The parts that Ollama's, OpenAI's and Anthropic's APIs share: schemas, streams, errors."""
