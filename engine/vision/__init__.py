"""Vision: images to rows for the text model, and images in prompts."""
