"""Pull and push over the registry protocol."""
