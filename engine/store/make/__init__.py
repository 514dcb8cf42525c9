"""Making models: Modelfiles, conversion, quantization."""
