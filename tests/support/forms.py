"""The forms of every model family, as the config.json of a small random model; and transformers' tokens for one."""

import json
import random
from typing import get_args

from gpt_parallel.schema.architecture import ActivationName
from gpt_parallel.schema.run import Request

GPT2_ACTIVATIONS = get_args(ActivationName)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}

# form: what a config.json has besides its sizes. A function is given the random choices and the sizes.
FORMS = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-scaled-by-layer": {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
    "gpt2-unscaled": {"model_type": "gpt2", "scale_attn_weights": False},
    "gpt2-upcast": {"model_type": "gpt2", "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "gpt2-untied": {"model_type": "gpt2", "tie_word_embeddings": False},
    "gpt2-activation": {"model_type": "gpt2", "activation_function": lambda choose, _: choose.choice(GPT2_ACTIVATIONS)},
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rope_theta": 100.0},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama-dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    "llama-llama3": {"model_type": "llama", "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    "llama-yarn": {"model_type": "llama", "rope_scaling": YARN, "rope_theta": 1000.0},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": lambda choose, _: choose.randint(1, 20)},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": lambda choose, _: choose.randint(1, 20),
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3"},
    "neox": {"model_type": "gpt_neox", "rotary_pct": lambda choose, sizes: _even_part(choose, sizes)},
    "neox-sequential": {"model_type": "gpt_neox", "use_parallel_residual": False, "rotary_pct": 1.0},
    "neox-tied": {
        "model_type": "gpt_neox",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rotary_pct": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "qwen3-window": {
        "model_type": "qwen3",
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": lambda choose, _: choose.randint(1, 20),
        "layer_types": lambda choose, sizes: [
            choose.choice(("full_attention", "sliding_attention")) for _ in range(sizes["num_hidden_layers"])
        ],
    },
}


def random_config(form, seed):
    """A config.json of odd sizes, with at least three layers and three heads."""
    choose = random.Random(f"{form}/{seed}")
    given = FORMS[form]
    sizes = _SIZES.get(given["model_type"], _rotary_sizes)(choose)
    own = {key: value(choose, sizes) if callable(value) else value for key, value in given.items()}
    return {**sizes, **own}


def _gpt2_sizes(choose):
    heads = choose.randint(3, 7)
    width = heads * choose.choice([4, 5, 8, 16])
    inner = choose.choice([None, choose.randint(20, 150)])
    positions = {"vocab_size": choose.randint(50, 250), "n_positions": 48, "n_inner": inner}
    return {"n_layer": choose.randint(3, 5), "n_head": heads, "n_embd": width, **positions}


def _rotary_sizes(choose):
    groups, size = choose.choice([(1, 3), (1, 5), (2, 2), (2, 3), (3, 1), (3, 2), (5, 1), (4, 2)])
    heads = groups * size
    sizes = {
        "num_hidden_layers": choose.randint(3, 5),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "hidden_size": heads * choose.choice([4, 6, 8]),
        "head_dim": choose.choice([4, 6, 8, 16]),
        "intermediate_size": choose.randint(20, 150),
        "vocab_size": choose.randint(50, 250),
        "max_position_embeddings": 48,
        "rms_norm_eps": choose.choice([1e-5, 1e-6]),
    }
    return sizes


def _qwen2_sizes(choose):
    """It has no field for the size of a head."""
    sizes = _rotary_sizes(choose)
    return {**sizes, "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]}


def _neox_sizes(choose):
    heads = choose.randint(3, 7)
    return {
        "num_hidden_layers": choose.randint(3, 5),
        "num_attention_heads": heads,
        "hidden_size": heads * choose.choice([4, 8, 12, 16]),
        "intermediate_size": choose.randint(20, 150),
        "vocab_size": choose.randint(50, 250),
        "max_position_embeddings": 48,
    }


def _even_part(choose, sizes):
    size = sizes["hidden_size"] // sizes["num_attention_heads"]
    return choose.choice(range(2, size + 1, 2)) / size


_SIZES = {"gpt2": _gpt2_sizes, "qwen2": _qwen2_sizes, "gpt_neox": _neox_sizes}


def save_model(config, directory, seed=0):
    """transformers' model of a configuration, with random weights of which every part shows.

    It is saved as `save_pretrained` does, but for `config.json`, which is the one that is given.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    theirs = AutoConfig.for_model(config["model_type"], **fields, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    width = theirs.hidden_size
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name or ".ln_" in name
        is_table = parameter.ndim == 2 and "layers." not in name and ".h." not in name
        spread = 0.1 if parameter.ndim == 1 or is_table else 1.5 / width**0.5
        centre = 1.0 if is_norm and name.endswith("weight") else 0.0
        parameter.data.normal_(centre, spread, generator=generator)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    return model


def random_requests(vocab_size, seed, count=5, *, equal=False):
    choose = random.Random(seed)
    length = choose.randint(2, 30)
    return tuple(
        Request(
            request_id=index,
            prompt_ids=tuple(choose.randrange(vocab_size) for _ in range(length if equal else choose.randint(1, 30))),
            max_new_tokens=choose.randint(2, 8),
        )
        for index in range(count)
    )


def tokens_of_transformers(model, workload):
    """What `generate` makes of each request alone. Sampled: by its own filters, then the noise of docs/design.md."""
    import torch
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    from gpt_parallel.judge.noise import gumbel

    sampling, tokens = workload.sampling, {}

    class Noise(theirs.LogitsProcessor):
        def __init__(self, request):
            self._request = request

        def __call__(self, ids, scores):
            place = [ids.shape[1]]
            noise = gumbel(sampling.seed, self._request.request_id, place, scores.shape[1], scores.device)
            return scores + noise.float()

    for request in workload.requests:
        processors = []
        if sampling.repetition_penalty != 1:
            processors.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not sampling.greedy:
            processors.append(theirs.TemperatureLogitsWarper(sampling.temperature))
            processors += [theirs.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
            processors += [theirs.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
            processors.append(Noise(request))
        prompt = torch.tensor([request.prompt_ids])
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList(processors),
        )
        tokens[request.request_id] = tuple(generated[0, prompt.shape[1] :].tolist())
    return tokens
