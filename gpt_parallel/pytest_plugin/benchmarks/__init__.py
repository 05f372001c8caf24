"""The cases of the main job. `pytest benchmarks` runs them in a checkout, `gpt-parallel bench` in any directory."""
