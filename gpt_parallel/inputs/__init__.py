"""The user's inputs: settings, models, checkpoints and prompts, read and checked."""
