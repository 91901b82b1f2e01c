"""Asking an endpoint: questions, answers, commands, load. `serve.client` is what programs use."""
