"""Settings, presets, and the reader of Hugging Face configuration files."""
