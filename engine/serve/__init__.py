"""The server's verbs: models loaded on demand, answers under way."""
