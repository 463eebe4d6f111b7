"""A trained model over HTTP: OpenAI's API, a simple one, a chat page and Prometheus metrics on one port."""
