//! Room `serve`: answers from a base and its adapters behind an OpenAI-compatible API.
