"""HTTP and the command line, on the engine."""
