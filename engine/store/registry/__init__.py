"""Pull and push of models over the registry protocol."""
