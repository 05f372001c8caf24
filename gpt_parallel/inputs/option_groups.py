"""The groups in which `--help` lists the settings, in the terminal and under pytest."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Layout": ("strategy", "num_gpus", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    "Model": ("model", "weights", "weights_seed", "dtype", "offline"),
    "Work": ("prompts", "num_samples", "batch_size", "batch_sizes", "prompt_tokens", "max_length"),
    "Sampling": ("temperature", "top_k", "top_p", "repetition_penalty", "seed"),
    "Devices": (
        *("device", "backend", "linear", "attention", "decode", "cores_per_rank", "oversubscribe", "when_busy"),
        *("launcher", "launcher_address"),
    ),
    "Measuring": ("warmup", "num_iterations", "launches", "timeout_s", "verify", "judge", "telemetry", "breakdown"),
    "Output": ("profile", "log_dir"),
}
OTHER_TOOLS = "Names that other tools use"
CONFIGURATION = "Configuration"
# Where the last word of a field's name does not say what its value is.
METAVARS = {
    "timeout_s": "SECONDS",
    "cores_per_rank": "CORES",
    "warmup": "PASSES",
    "num_iterations": "PASSES",
    "launcher": "COMMAND",
    "launcher_address": "HOST:PORT",
    "profile": "DIR",
    "num_gpus": "COUNTS",
    "when_busy": "HOW",
}
