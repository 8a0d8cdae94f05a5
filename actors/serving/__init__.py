"""The OpenAI API over an engine: protocol, endpoints, limits, streams, metrics."""
