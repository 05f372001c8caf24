"""One engine in a process of its own, told when to run: `python benchmarks/peers.py ENGINE JOB CHECKPOINT CORE`.

It answers each line on its standard input with a line of JSON: `tokens` with what it generates, `round` with the times
of one pass over all requests. So several engines can take turns on one core, and each has what it needs in its memory.
ENGINE `checkpoint` writes the job's model as a Hugging Face directory and ends.
"""

import json
import os
import sys
import time
from pathlib import Path


class GptParallel:
    """The engine of this project on one device, as the main job runs it."""

    def __init__(self, job, checkpoint):
        from gpt_parallel.engine.pipe import StatusPipe
        from gpt_parallel.engine.rank import Rank
        from gpt_parallel.engine.timing.stopwatch import Stopwatch
        from gpt_parallel.layout.batches import deal_lanes

        rank = Rank(job.spec, 0, 0, "", StatusPipe(os.open(os.devnull, os.O_WRONLY)))
        lanes = deal_lanes(job.spec.workload, rank._mesh)
        self._generator = rank.generator(lanes)
        self._stopwatch = Stopwatch(rank._device)

    def run(self):
        from gpt_parallel.engine.generation.records import tokens_by_request
        from gpt_parallel.engine.timing.stopwatch import consume

        seconds, timelines, events = consume(self._generator.run(), self._stopwatch)
        return seconds, timelines, lambda: tokens_by_request(events)


class _Batches:
    """An engine that takes a batch of prompts at a time."""

    def __init__(self, job, checkpoint):
        workload = job.spec.workload
        starts = range(0, len(workload.requests), workload.batch_size)
        self._batches = [workload.requests[start : start + workload.batch_size] for start in starts]
        self._load(job, checkpoint)

    def run(self):
        from gpt_parallel.schema.result import BatchTimeline

        timelines, tokens = [], {}
        begin = time.monotonic()
        for index, batch in enumerate(self._batches):
            start, times = time.monotonic(), []
            generated = self._generate(batch, max(r.max_new_tokens for r in batch), times)
            timelines.append(BatchTimeline(batch_id=str(index), start_s=start, token_times_s=tuple(times)))
            for request, row in zip(batch, generated, strict=True):
                tokens[request.request_id] = row[: request.max_new_tokens]
        return time.monotonic() - begin, timelines, lambda: tokens


class Transformers(_Batches):
    """`generate` of Hugging Face transformers: eager with a growing cache."""

    def _load(self, job, checkpoint):
        import torch
        from transformers import GPT2LMHeadModel

        from gpt_parallel.engine.timing.stopwatch import Stopwatch

        self._torch = torch
        self._device = torch.device(job.spec.execution.device)
        self._stopwatch = Stopwatch(self._device)
        dtype = getattr(torch, job.spec.execution.dtype)
        self._model = GPT2LMHeadModel.from_pretrained(checkpoint, dtype=dtype).to(self._device).eval()

    def _generate(self, batch, num_tokens, times):
        torch, longest = self._torch, max(len(r.prompt_ids) for r in batch)
        padding = [longest - len(r.prompt_ids) for r in batch]
        ids = torch.tensor([[0] * pad + list(r.prompt_ids) for pad, r in zip(padding, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        marks = []

        def watch(ids, scores, **_):
            marks.append(self._stopwatch.mark())  # on CUDA the token is not there yet when this is called
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        self._stopwatch.start()
        generated = self._model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[watch],
            **self._cache(),
        )
        rows = generated[:, longest:].tolist()
        self._stopwatch.synchronize()
        times += map(self._stopwatch.seconds, marks)
        return rows

    def _cache(self):
        return {}


class TransformersStatic(Transformers):
    """The same with a static cache and torch.compile, as transformers advises for GPUs.

    `generate` compiles the decode step alone, for the cache and batch it meets. One that makes its own cache compiles
    anew for another length, and captures its CUDA graph anew in each call; so all batches share one cache, as long as
    the longest needs, and are filled up to as many rows.
    """

    compile_config = None  # transformers' own

    def _load(self, job, checkpoint):
        super()._load(job, checkpoint)
        import inspect

        from transformers import StaticCache

        self._num_rows = max(map(len, self._batches))
        lengths = [
            max(len(r.prompt_ids) for r in batch) + max(r.max_new_tokens for r in batch) for batch in self._batches
        ]
        self._static = StaticCache(config=self._model.config, max_cache_len=max(lengths))
        takes = inspect.signature(self._model.forward).parameters
        self._name = "cache" if "cache" in takes else "past_key_values"  # until transformers 5.23 or so

    def _generate(self, batch, num_tokens, times):
        missing = self._num_rows - len(batch)
        return super()._generate([*batch, *[batch[0]] * missing], num_tokens, times)[: len(batch)]

    def _cache(self):
        self._static.reset()
        return {self._name: self._static, "compile_config": self.compile_config}


class CTranslate2(_Batches):
    """The C++ engine of OpenNMT, in the same number type."""

    def _load(self, job, checkpoint):
        import ctranslate2

        converted = checkpoint.parent / "ctranslate2"
        if not converted.exists():
            ctranslate2.converters.TransformersConverter(str(checkpoint)).convert(str(converted))
        execution = job.spec.execution
        self._generator = ctranslate2.Generator(
            str(converted),
            device=execution.device,
            compute_type=execution.dtype,
            inter_threads=1,
            intra_threads=execution.cores_per_rank,
        )

    def _generate(self, batch, num_tokens, times):
        seen = {}

        def watch(step):
            # Called for each row of a batch; the step is over with its last one.
            seen[step.step] = time.monotonic()
            return False

        results = self._generator.generate_batch(
            [[f"t{token}" for token in r.prompt_ids] for r in batch],
            max_length=num_tokens,
            min_length=num_tokens,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token="t0",
            callback=watch,
        )
        times += [seen[step] for step in sorted(seen)]
        return [result.sequences_ids[0] for result in results]


def write_checkpoint(job, directory):
    """The job's model for engines that read Hugging Face directories, with a vocabulary of plain names."""
    from safetensors.torch import save_file

    from gpt_parallel.engine.model.random_weights import random_tensor
    from gpt_parallel.schema.families.registry import family_of, tensor_shapes

    shape, seed = job.spec.model.architecture, job.spec.model.seed
    directory.mkdir(parents=True)
    tensors = {f"transformer.{name}": random_tensor(name, shape, seed) for name in tensor_shapes(shape)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **family_of(shape).to_config(shape),
    }
    (directory / "config.json").write_text(json.dumps(config))
    names = {f"t{index}": index for index in range(shape.vocab_size)}
    (directory / "vocab.json").write_text(json.dumps(names))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    special = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "t0", "bos_token": "t0", "eos_token": "t0"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))


ENGINES = {
    "gpt_parallel": GptParallel,
    "transformers": Transformers,
    "transformers static + compile": TransformersStatic,
    "ctranslate2": CTranslate2,
}


def main(name, job_file, checkpoint, core):
    if core != "any":
        os.sched_setaffinity(0, {int(core)})
    import resource

    import torch

    from gpt_parallel.schema.result import RoundReport
    from gpt_parallel.schema.run import Job

    job, checkpoint = Job.model_validate_json(Path(job_file).read_bytes()), Path(checkpoint)
    torch.set_num_threads(job.spec.execution.cores_per_rank)
    if name == "checkpoint":
        write_checkpoint(job, checkpoint)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is no answer
    with torch.inference_mode():
        engine = ENGINES[name](job, checkpoint)
        for command in map(str.strip, sys.stdin):
            seconds, timelines, tokens = engine.run()
            if command == "tokens":
                on_gpu = job.spec.execution.device == "cuda"
                device_name = torch.cuda.get_device_name() if on_gpu else "CPU"
                answer = {"tokens": tokens(), "torch": torch.__version__, "device_name": device_name}
                print(json.dumps(answer), file=answers, flush=True)
            else:
                report = RoundReport(seconds=seconds, timelines=tuple(timelines))
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                print(json.dumps({"round": report.model_dump(), "peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
