"""The demo model: a tiny Blip2ForConditionalGeneration, its start values, its texts as tensors.

In this file, in order: build (configuration and start values), pixels, make_tokenizer, Packer (several texts
for one encoded image in a single pass of the language model), patch_states, image_embeds, text_loss, exact,
answers (greedy decoding with transformers' own generate), export. The language model here is OPT's kind;
model_t5.py has what is different for Flan-T5's.

Why several texts for one image: the ViT costs most, and a text costs a tenth of it. One row of the language
model's batch is

    [Q image embeddings][text 1][text 2]...[text K][padding]      T = Q + the lengths

with positions that start again after the image for every text, and a mask that lets a token see the image and
its own text only, so that every text is computed exactly as if it stood alone (checked by selftest.py).
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig,
                          Blip2VisionConfig, GenerationConfig, OPTConfig)

IMAGE, PATCH = 112, 14
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)      # CLIP's, as BLIP-2 uses them
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
BOS, PAD, EOS_OPT, UNK = 0, 1, 2, 3     # OPT's ids: text begins with </s> = 2, and ends with a newline
QUERIES = 12
MOST_TEXTS = 64                         # for one image in a batch


def build(vocab, newline, image_token, seed):
    """A model with start values; about 3.9 million parameters, so that bf16 stays below 8 MB."""
    torch.manual_seed(seed)
    vision = Blip2VisionConfig(hidden_size=192, intermediate_size=640, num_hidden_layers=6,
                               num_attention_heads=6, image_size=IMAGE, patch_size=PATCH,
                               initializer_range=.02)
    qformer = Blip2QFormerConfig(vocab_size=vocab, hidden_size=128, num_hidden_layers=4,
                                 num_attention_heads=4, intermediate_size=256, cross_attention_frequency=2,
                                 encoder_hidden_size=192, hidden_dropout_prob=0.0,
                                 attention_probs_dropout_prob=0.0)
    text = OPTConfig(vocab_size=vocab, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
                     ffn_dim=512, max_position_embeddings=160, word_embed_proj_dim=128, dropout=0.0,
                     attention_dropout=0.0, bos_token_id=EOS_OPT, pad_token_id=PAD, eos_token_id=newline,
                     activation_function="relu", do_layer_norm_before=True, tie_word_embeddings=True)
    config = Blip2Config(vision_config=vision.to_dict(), qformer_config=qformer.to_dict(),
                         text_config=text.to_dict(), num_query_tokens=QUERIES, image_token_index=image_token)
    model = Blip2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=EOS_OPT, pad_token_id=PAD, eos_token_id=newline)
    with torch.no_grad():
        emb = model.vision_model.embeddings
        emb.patch_embedding.weight.copy_(cosine_filters(emb.patch_embedding.out_channels, PATCH))
        emb.position_embedding[0, 1:].copy_(wave_positions(IMAGE // PATCH, emb.embed_dim))
        model.query_tokens.normal_(0, 1)
    return model


def cosine_filters(C, P):
    """(C,3,P,P): the lowest cosine waves of brightness and of two colour differences.

    A ViT spends long on learning to see its patches at all; this way it starts by seeing them slightly
    blurred.
    """
    k = torch.arange(P, dtype=torch.float64)
    wave = torch.cos(torch.pi / P * (k[None] + .5) * k[:, None]) * (2 / P) ** .5
    wave[0] /= 2 ** .5
    order = sorted((u * u + v * v, u, v) for u in range(P) for v in range(P))
    mixes = [([.577, .577, .577], C // 2), ([.707, 0, -.707], C // 4),
             ([-.408, .816, -.408], C - C // 2 - C // 4)]
    out = []
    for mix, count in mixes:
        for freq, u, v in order[:count]:
            # natural pictures have amplitudes that fall with frequency: lift the fine waves a little
            gain, colour = .12 * (1 + freq) ** .4, torch.tensor(mix, dtype=torch.float64)
            out.append(gain * colour[:, None, None] * torch.outer(wave[u], wave[v]))
    return torch.stack(out).float()


def wave_positions(G, C):
    """(G*G,C): sines and cosines of the row and the column, a start from which the ViT learns its own."""
    freq = 1.0 / (30.0 ** (torch.arange(C // 4) / (C // 4)))
    axis = torch.arange(G)[:, None] * freq[None]
    axis = torch.cat([axis.sin(), axis.cos()], 1)                                       # (G, C/2)
    return .3 * torch.cat([axis[:, None].expand(G, G, -1), axis[None].expand(G, G, -1)], 2).reshape(G * G, C)


def pixels(pictures):
    """list of uint8 (S,S,3) -> float32 (B,3,S,S), normalised."""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (x - MEAN) / STD


def make_tokenizer(texts, size, folder):
    """Learns a byte-level BPE and writes it as OPT's tokenizer files; returns the loaded tokenizer.

    Same path as OPT's: no normaliser, GPT-2's splitting, </s> put in front, nothing appended.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    os.makedirs(folder, exist_ok=True)
    tok.model.save(folder)                                      # vocab.json, merges.txt
    write_tokenizer_json(folder, tok)
    return load_tokenizer(folder)


def write_tokenizer_json(folder, tok):
    """tokenizer.json and tokenizer_config.json, with <image> as the last id, as the Hub's BLIP-2 has it."""
    from tokenizers import AddedToken, processors
    tok.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tok.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", EOS_OPT)])
    tok.save(os.path.join(folder, "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False,
              "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
              "errors": "replace", "model_max_length": 148, "padding_side": "left",
              "clean_up_tokenization_spaces": False}
    for name, value in (("tokenizer_config.json", config),
                        ("special_tokens_map.json", {k: config[k] for k in
                                                     ("bos_token", "eos_token", "unk_token", "pad_token")})):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f, indent=2)


def load_tokenizer(folder):
    """The bare `tokenizers` object; everything here uses encode(text, add_special_tokens=False).ids."""
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


class Packer:
    """Texts -> the tensors of one pass. Remembers the ids of pieces it has seen: there are few of them."""

    def __init__(self, tok):
        self.tok, self.newline, self.seen = tok, tok.encode("\n", add_special_tokens=False).ids[0], {}

    def ids(self, text):
        if text not in self.seen:
            self.seen[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.seen[text]

    def one(self, prompt, answer):
        """-> ids of [</s>][prompt][answer][newline] and the number of ids before the answer.

        An answer that follows a prompt begins with a space, a caption does not.
        """
        head = [EOS_OPT] + self.ids(prompt)
        return head + self.ids(" " + answer if prompt else answer) + [self.newline], len(head)

    def pack(self, rows, Q=QUERIES):
        """rows: a list of (prompt, answer) per image -> ids, target, group (B,N), place (B,T), see (B,1,T,T).

        T = Q + N. target is the next token where it belongs to an answer, else -100; group is the number of
        the text (1..K, -1 for padding); see is True where a token may look.
        """
        encoded = [[self.one(p, a) for p, a in texts] for texts in rows]
        N = max(sum(len(e) for e, _ in texts) for texts in encoded)
        B = len(rows)
        ids, target = np.full((B, N), PAD), np.full((B, N), -100)
        place = np.zeros((B, Q + N), np.int64)
        place[:, :Q] = np.arange(Q)
        group = np.full((B, Q + N), -1)
        group[:, :Q] = 0                                # the image
        for b, texts in enumerate(encoded):
            at = 0
            for k, (e, head) in enumerate(texts):
                n = len(e)
                ids[b, at:at + n] = e
                target[b, at + head - 1:at + n - 1] = e[head:]
                place[b, Q + at:Q + at + n] = np.arange(Q, Q + n)
                group[b, Q + at:Q + at + n] = k + 1
                at += n
        see = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == 0)
        see &= np.tril(np.ones((Q + N, Q + N), bool))[None]
        return [torch.from_numpy(a) for a in (ids, target, group[:, Q:].copy(), place, see[:, None])]

    @staticmethod
    def logits(model, embeds, batch):
        """embeds (B,Q,C), batch of pack -> logits (W,V) where an answer's token is next, that token (W), and
        the text it belongs to (W): image * MOST_TEXTS + number from 0."""
        ids, target, group, place, see = batch
        lm = model.language_model
        x = torch.cat([embeds, lm.get_input_embeddings()(ids)], 1)
        mask = torch.zeros(see.shape).masked_fill_(~see, torch.finfo(torch.float32).min)
        h = lm.model.decoder(inputs_embeds=x, attention_mask=mask, position_ids=place, use_cache=False)[0]
        wanted = target >= 0
        text = wanted.nonzero()[:, 0] * MOST_TEXTS + group[wanted] - 1
        return lm.lm_head(h[:, embeds.shape[1]:][wanted]), target[wanted], text


def patch_states(vit, pixel_values, keep=None):
    """(B,1+P,C): Blip2VisionModel.forward; with keep (B,K) only the class token and K patches go through.

    Leaving out bare background is the cheapest speed there is: the cost falls with the number of tokens.
    """
    if keep is None:
        return vit(pixel_values).last_hidden_state
    x = vit.embeddings(pixel_values)
    keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)[:, :, None].expand(-1, -1, x.shape[2])
    return vit.post_layernorm(vit.encoder(inputs_embeds=x.gather(1, keep)).last_hidden_state)


def image_embeds(model, pixel_values, keep=None):
    """-> patches (B,1+P,Cv), queries (B,Q,Cq), embeddings for the language model (B,Q,C): the steps of
    Blip2ForConditionalGeneration.get_image_features, kept apart because the helping losses look inside."""
    patches = patch_states(model.vision_model, pixel_values, keep)
    queries = model.qformer(query_embeds=model.query_tokens.expand(len(patches), -1, -1),
                            encoder_hidden_states=patches)[0]
    return patches, queries, model.language_projection(queries)


def text_loss(logits, target, text):
    """What Packer.logits returns -> mean loss of the texts, share of tokens right.

    Every text weighs the same: by tokens, captions would drown "yes" and "no", from which the model learns to
    compare a word with what it sees.
    """
    _, which, count = text.unique(return_inverse=True, return_counts=True)
    weight = 1 / count[which].float()
    loss = (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum() / len(count)
    return loss, (logits.argmax(1) == target).float().mean().item()


def exact(logits, target, text):
    """What Packer.logits returns -> {(image, text number from 0): would greedy decoding give that answer?}

    Greedy decoding follows the answer as long as every token of it is the likeliest after those before it, so
    one pass over the given answer decides.
    """
    out = {}
    for at, ok in zip(text.tolist(), (logits.argmax(1) == target).tolist(), strict=True):
        key = divmod(at, MOST_TEXTS)
        out[key] = out.get(key, True) and ok
    return out


@torch.no_grad()
def answers(model, tok, pixel_values, prompts, new_tokens=40):
    """Greedy answers by transformers' generate. pixel_values (B,3,S,S), B prompts -> B texts."""
    Q, image = model.config.num_query_tokens, model.config.image_token_index
    by_length, out = {}, [None] * len(prompts)
    rows = [[image] * Q + tok.encode(p).ids for p in prompts]
    for i, r in enumerate(rows):
        by_length.setdefault(len(r), []).append(i)
    for group in by_length.values():                    # equal lengths only: no padding, so no doubt about it
        ids = torch.tensor([rows[i] for i in group])
        got = model.generate(pixel_values=pixel_values[group], input_ids=ids,
                             attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                             do_sample=False)
        for i, g in zip(group, got.tolist(), strict=True):
            g = g[len(rows[i]):] if g[:Q] == [image] * Q else g
            out[i] = tok.decode(g).strip()               # skips special tokens
    return out


def export(model, tok_folder, folder, dtype=torch.bfloat16):
    """Writes the folder that transformers and the exporter read."""
    import copy
    import shutil
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                 "special_tokens_map.json"):
        if os.path.exists(os.path.join(tok_folder, name)):      # T5's kind has no merges
            shutil.copy(os.path.join(tok_folder, name), folder)
    with open(os.path.join(folder, "preprocessor_config.json"), "w") as f:
        json.dump({"image_processor_type": "BlipImageProcessor", "processor_class": "Blip2Processor",
                   "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
                   "image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist(), "resample": 3,
                   "rescale_factor": 1 / 255, "size": {"height": IMAGE, "width": IMAGE}}, f, indent=2)
    with open(os.path.join(folder, "processor_config.json"), "w") as f:
        json.dump({"num_query_tokens": QUERIES, "processor_class": "Blip2Processor"}, f, indent=2)
    AutoTokenizer.from_pretrained(folder)               # fails here rather than at the user's
