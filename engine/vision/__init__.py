"""Images in, rows for the text model out; images in a prompt."""
