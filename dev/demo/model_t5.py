"""The second demo model: the same eyes as the first, a tiny Flan-T5 for a mouth.

In this file, in order: build (the first model's ViT, queries and Q-Former, and a new language model), borrow (what its
embedding begins with), make_tokenizer (a unigram vocabulary in the form of google/flan-t5's tokenizer.json), PackerT5.
Not here: everything that does not depend on the kind of language model (model.py).

An encoder looks in both directions, so texts of one image cannot share a row as they do in model.Packer: here
every text has its own row of the language model's batch, and the image's embeddings are repeated.
"""
import json
import os

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, \
    trainers
from transformers import Blip2Config, Blip2ForConditionalGeneration, GenerationConfig, T5Config

import model as M

PAD, EOS, UNK = 0, 1, 2                 # T5's ids; the decoder starts with the padding token


def build(first, vocab, image_token, seed):
    """first: the OPT demo model -> the same vision parts with a Flan-T5 of 0.7 million parameters, new."""
    torch.manual_seed(seed)
    C = first.config.qformer_config.hidden_size
    text = T5Config(vocab_size=vocab, d_model=C, d_kv=32, d_ff=160, num_layers=2, num_decoder_layers=2,
                    num_heads=3, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False,
                    relative_attention_num_buckets=32, relative_attention_max_distance=64,
                    decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS)
    text.dense_act_fn = "gelu"          # BLIP-2's Flan-T5 uses the exact GELU, T5Config alone the tanh form
    config = Blip2Config(vision_config=first.config.vision_config.to_dict(),
                         qformer_config=first.config.qformer_config.to_dict(), text_config=text.to_dict(),
                         num_query_tokens=first.config.num_query_tokens, image_token_index=image_token)
    net = Blip2ForConditionalGeneration(config)
    # T5Config ties the head to the embedding whatever it is told; Flan-T5's is a matrix of its own. With the
    # embedding's deviation of 1, which suits T5's layers, a head begins with logits of 11: too much to unlearn.
    lm = net.language_model
    lm.config.tie_word_embeddings = False
    lm.lm_head.weight = torch.nn.Parameter(torch.randn(vocab, C) * .03)
    net.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)
    net.vision_model.load_state_dict(first.vision_model.state_dict())
    net.qformer.load_state_dict(first.qformer.state_dict())
    with torch.no_grad():
        net.query_tokens.copy_(first.query_tokens)
    return net


@torch.no_grad()
def borrow(net, oracle, tok, words, colours):
    """Before training, a noun's or colour's token is what the oracle writes of it; the projection lets that through.

    To find the noun of a question among the queries then takes comparing equal things. Without it "is there a cat?"
    was still answered by chance after 100,000 scenes of 161 nouns.
    """
    net.language_projection.weight.copy_(torch.eye(*net.language_projection.weight.shape))
    net.language_projection.bias.zero_()
    said = [(oracle.noun.weight[i], name) for i, n in enumerate(words.nouns) for name in (n, words.plural[n])]
    said += [(oracle.colour.weight[i], name) for i, name in enumerate(colours)]
    for vector, name in said:
        ids = tok.encode(name, add_special_tokens=False).ids
        if len(ids) == 1:
            net.language_model.shared.weight[ids[0]] = (vector - vector.mean()) / vector.std()


def make_tokenizer(texts, size, folder):
    """Learns a unigram vocabulary and writes it as Flan-T5's files; returns the loaded tokenizer.

    Normaliser, Metaspace and template are Flan-T5's, except that its map of Unicode characters is left out:
    these texts are plain ASCII.
    """
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tok.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    special = ["<pad>", "</s>", "<unk>"]
    tok.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=size - 1, special_tokens=special, unk_token="<unk>", show_progress=False,
        initial_alphabet=[chr(c) for c in range(33, 127)]))
    tok.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in [*special, "<image>"]])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                       special_tokens=[("</s>", EOS)])
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    for name, value in (("tokenizer_config.json", names | {
            "tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": 148,
            "clean_up_tokenization_spaces": False}), ("special_tokens_map.json", names)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f, indent=2)
    return M.load_tokenizer(folder)


class PackerT5:
    """Texts -> the tensors of one pass; the same interface as model.Packer."""

    def __init__(self, tok):
        self.tok, self.seen = tok, {}

    def ids(self, text):
        """Ids with the end token, which T5 puts behind prompts and answers alike."""
        if text not in self.seen:
            self.seen[text] = self.tok.encode(text).ids
        return self.seen[text]

    def pack(self, rows):
        """rows: a list of (prompt, answer) per image, M texts in all -> image (M), text (M), prompt ids and
        mask (M,E), answer ids (M,D), -100 behind their end."""
        image, text, asked, said = [], [], [], []
        for b, texts in enumerate(rows):
            for k, (prompt, answer) in enumerate(texts):
                image.append(b), text.append(b * M.MOST_TEXTS + k)
                asked.append(self.ids(prompt)), said.append(self.ids(answer))
        E, D = max(map(len, asked)), max(map(len, said))
        prompt, answer = np.full((len(asked), E), PAD), np.full((len(said), D), -100)
        mask = np.zeros((len(asked), E), np.int64)
        for i, (p, a) in enumerate(zip(asked, said, strict=True)):
            prompt[i, :len(p)], mask[i, :len(p)], answer[i, :len(a)] = p, 1, a
        return [torch.from_numpy(np.asarray(a)) for a in (image, text, prompt, mask, answer)]

    @staticmethod
    def logits(model, embeds, batch):
        """As model.Packer.logits."""
        image, text, prompt, mask, answer = batch
        lm = model.language_model
        x = torch.cat([embeds[image], lm.get_input_embeddings()(prompt)], 1)
        mask = torch.cat([torch.ones(x.shape[0], embeds.shape[1], dtype=mask.dtype), mask], 1)
        out = lm(inputs_embeds=x, attention_mask=mask, labels=answer, use_cache=False).logits
        wanted = answer >= 0
        return out[wanted], answer[wanted], text[wanted.nonzero()[:, 0]]
