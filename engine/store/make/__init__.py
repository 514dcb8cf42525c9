"""Creation of models: Modelfiles, conversion, quantization."""
