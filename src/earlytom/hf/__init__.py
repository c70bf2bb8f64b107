"""The engine for Hugging Face models: installs and removes the hooks that run a method."""
