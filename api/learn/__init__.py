"""The page /learn, and the routes that it reads: a model file, a scheduler's steps, a position of a held answer."""
