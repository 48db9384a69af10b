"""The other engines that dev/bench.py times, each in a process of its own: transformers, and CTranslate2.

    python3 dev/bench_peers.py transformers-bf16 FOLDER TOKENS        then a line "THREADS BEAMS" for each run
    python3 dev/bench_peers.py ctranslate2-int8 FOLDER.ct2 TOKENS
    python3 dev/bench_peers.py convert FOLDER FOLDER.ct2              once, before CTranslate2

A process loads its model once and answers each line with a line of JSON: stage -> seconds (decode: of one token), and
"peak", bytes of memory, mapped files included.

In order: transformers, converting for CTranslate2, CTranslate2, main. CTranslate2 has no BLIP-2, but OPT and T5: it is
given a prompt of as many tokens, so that only its prompt and decode compare. Needs torch, transformers and, for the
latter, ctranslate2 (dev/bench-requirements.txt). Not here: what is run when, and the table.
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

PROMPT = "a photo of"
DTYPES = {"transformers-f32": "float32", "transformers-bf16": "bfloat16"}


def answer(load, run):
    """Reads "THREADS BEAMS" lines, writes what run(threads, beams) returns."""
    print(json.dumps({"load": load}), flush=True)
    for line in sys.stdin:
        result = run(*map(int, line.split()))
        result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(result), flush=True)


# ---------------------------------------------------------------------------------------------------------------------


def transformers(folder, tokens, name):
    """The whole model. Stages end where the hooks of the modules that end them are called."""
    import warnings
    start = time.perf_counter()
    import torch
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration, logging
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    dtype = getattr(torch, name)
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    load = time.perf_counter() - start
    c = model.config
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    ids = torch.tensor([[c.image_token_index] * c.num_query_tokens + ids])
    side = c.vision_config.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)
    ends = {"vit": [], "qformer": [], "language": []}

    def note(stage):
        return lambda *_: ends[stage].append(time.perf_counter())
    for module, stage in ("vision_model", "vit"), ("language_projection", "qformer"), ("language_model", "language"):
        model.get_submodule(module).register_forward_hook(note(stage))

    def generate(beams, n):
        with torch.inference_mode():
            model.generate(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                           num_beams=beams, max_new_tokens=n, min_new_tokens=n)

    def run(threads, beams):
        torch.set_num_threads(threads)
        for times in ends.values():
            times.clear()
        start = time.perf_counter()
        generate(beams, tokens)
        end, language = time.perf_counter(), ends["language"]
        return {"vit": ends["vit"][0] - start, "qformer": ends["qformer"][0] - ends["vit"][0],
                "prompt": language[0] - ends["qformer"][0], "caption": end - start,
                "decode": (end - language[0]) / max(1, len(language) - 1)}
    generate(1, 2)                               # the first call pays for much that the others find
    answer(load, run)


# ---------------------------------------------------------------------------------------------------------------------


def convert(folder, out):
    """The language model of a BLIP-2 folder for CTranslate2, in int8. Its tensors are taken from the mapped files."""
    import ctranslate2
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer
    text = json.loads((folder / "config.json").read_text())["text_config"]
    opt, prefix, weights = text["model_type"] == "opt", "language_model.", {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as f:
            weights.update({name[len(prefix):]: f.get_tensor(name) for name in f.keys() if name.startswith(prefix)})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if opt:                                      # the converter wants rows, and names for them, in multiples of 8
        embedding = "model.decoder.embed_tokens.weight"
        weights[embedding] = torch.nn.functional.pad(weights[embedding], (0, 0, 0, -len(weights[embedding]) % 8))
        text["vocab_size"] = len(weights[embedding])
        weights.setdefault("lm_head.weight", weights[embedding])
        tokenizer.add_tokens([f"<row {i}>" for i in range(text["vocab_size"] - len(tokenizer))])
    else:
        for stack in "encoder", "decoder":
            weights[f"{stack}.embed_tokens.weight"] = weights["shared.weight"]
    alone = out.with_suffix(".lm")               # what the converter reads itself
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir(parents=True)
    (alone / "config.json").write_text(json.dumps(text))
    tokenizer.save_pretrained(alone)

    class Converter(ctranslate2.converters.TransformersConverter):
        def load_model(self, model_class, path, **kw):
            with torch.device("meta"):
                model = model_class(AutoConfig.from_pretrained(path))
            model.load_state_dict(weights, assign=True)
            return model
    part = out.with_suffix(".part")
    Converter(str(alone)).convert(str(part), quantization="int8", force=True)
    shutil.rmtree(alone)
    shutil.copy(folder / "config.json", part / "blip2.json")
    part.rename(out)


def ctranslate2_int8(folder, tokens):
    """The language model alone. Its time for one new token counts as the prompt's, that of each further one as a decode
    step's."""
    import ctranslate2
    config = json.loads((folder / "blip2.json").read_text())
    t5 = config["text_config"]["model_type"] == "t5"
    names = json.loads((folder / ("shared_vocabulary.json" if t5 else "vocabulary.json")).read_text())
    prompt = [names[10 + i] for i in range(config["num_query_tokens"] + len(PROMPT.split()) + 1)]
    models = {}                                  # a model keeps the number of threads that it was made with

    def open_model(threads):
        models.clear()                           # before the next is made
        kind = ctranslate2.Translator if t5 else ctranslate2.Generator
        models[threads] = kind(str(folder), compute_type="int8", intra_threads=threads, inter_threads=1)

    def once(threads, beams, n):
        start = time.perf_counter()
        if t5:
            models[threads].translate_batch([prompt], beam_size=beams, max_decoding_length=n, min_decoding_length=n)
        else:
            models[threads].generate_batch([prompt], beam_size=beams, max_length=n, min_length=n,
                                           include_prompt_in_result=False)
        return time.perf_counter() - start

    def run(threads, beams):
        if threads not in models:
            open_model(threads)
            once(threads, 1, 2)                  # the first call pays for starting threads
        first, whole = once(threads, beams, 1), once(threads, beams, tokens)
        return {"prompt": first, "decode": (whole - first) / max(1, tokens - 1)}
    start = time.perf_counter()
    open_model(1)
    answer(time.perf_counter() - start, run)


def main():
    engine, folder, last = sys.argv[1:]
    if engine == "convert":
        convert(Path(folder), Path(last))
    elif engine == "ctranslate2-int8":
        ctranslate2_int8(Path(folder), int(last))
    else:
        transformers(Path(folder), int(last), DTYPES[engine])


if __name__ == "__main__":
    main()
