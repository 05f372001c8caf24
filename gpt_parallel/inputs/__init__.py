"""From what a user says and owns to what can be run: settings, models, checkpoints, prompts."""
