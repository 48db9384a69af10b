"""The helping heads of the demo's training: what is dropped when the model is finished.

In this file, in order: VitHeads (names the noun of each patch), QueryHeads (the first queries name the objects),
truths (what there is to name), Oracle (a perfect description in the place of the queries).
"""
import torch
import torch.nn.functional as F

import scenes as S


class VitHeads(torch.nn.Module):
    """What covers a patch (nouns and background), and whether the centre of an object lies in it."""

    def __init__(self, width, nouns):
        super().__init__()
        self.noun, self.centre = torch.nn.Linear(width, nouns + 1), torch.nn.Linear(width, 1)
        self.register_buffer("weight", torch.ones(nouns + 1), persistent=False)
        self.weight[-1] = .2                             # half of the patches are background, and easy

    def loss(self, patches, labels):
        """patches (B,P,C), labels (B,2,P) -> loss, share of the object patches named right."""
        logits, noun = self.noun(patches), labels[:, 0]
        loss = F.cross_entropy(logits.flatten(0, 1), noun.flatten(), weight=self.weight, ignore_index=-100)
        where = F.binary_cross_entropy_with_logits(self.centre(patches)[..., 0], labels[:, 1].float(),
                                                   pos_weight=torch.tensor(5.0))
        on = (noun >= 0) & (noun < len(self.weight) - 1)
        return loss + .3 * where, ((logits.argmax(-1) == noun) & on).sum().item() / max(on.sum().item(), 1)


class QueryHeads(torch.nn.Module):
    """What the first queries should find: query i the noun and place of object i from the left, 4 the colour.

    Without this the Q-Former must discover from words alone that there are objects.
    """
    OBJECTS = 4

    def __init__(self, width, nouns):
        super().__init__()
        self.noun, self.at = torch.nn.Linear(width, nouns + 1), torch.nn.Linear(width, 2)
        self.colour = torch.nn.Linear(width, len(S.COLOURS))

    def loss(self, queries, truth):
        """queries (B,Q,C), truth from truths() -> loss, share of the objects whose noun is right."""
        noun, at, colour = truth
        none = self.noun.out_features - 1
        logits, there = self.noun(queries[:, :self.OBJECTS]), noun < none
        loss = F.cross_entropy(logits.flatten(0, 1), noun.flatten())
        loss = loss + 2 * F.smooth_l1_loss(self.at(queries[:, :self.OBJECTS])[there], at[there], beta=.1)
        loss = loss + .3 * F.cross_entropy(self.colour(queries[:, self.OBJECTS]), colour)
        return loss, ((logits.argmax(-1) == noun) & there).sum().item() / there.sum().item()


def truths(scenes, noun_id):
    """-> noun (B,4) of the objects from the left, len(noun_id) for none, their places (B,4,2), colour (B)."""
    noun = torch.full((len(scenes), QueryHeads.OBJECTS), len(noun_id))
    at, colours = torch.zeros(len(scenes), QueryHeads.OBJECTS, 2), list(S.COLOURS)
    for b, s in enumerate(scenes):
        for i, t in enumerate(s.things):
            noun[b, i], at[b, i] = noun_id[t.noun], torch.tensor([t.x, t.y])
    return noun, at, torch.tensor([colours.index(s.colour) for s in scenes])


class Oracle(torch.nn.Module):
    """Writes down what the queries would say of a picture that is understood perfectly.

    The language model learns to count, compare and answer from these, without the cost of pictures and
    without being misled by what the ViT does not see yet; the Q-Former is then drawn towards them.
    """

    def __init__(self, queries, width, nouns):
        super().__init__()
        self.slot = torch.nn.Parameter(torch.randn(queries, width) * .5)
        self.noun, self.at = torch.nn.Embedding(nouns + 1, width), torch.nn.Linear(2, width, bias=False)
        self.colour = torch.nn.Embedding(len(S.COLOURS), width)
        torch.nn.init.normal_(self.at.weight, 0, 1.5)

    def forward(self, truth):
        """-> (B,Q,C), normalised as the Q-Former's last step normalises."""
        noun, at, colour = truth
        there = (noun < self.noun.num_embeddings - 1)[..., None]
        objects = self.noun(noun) + self.at(at - .5) * there
        said = torch.cat([objects, self.colour(colour)[:, None]], 1)
        said = F.pad(said, (0, 0, 0, self.slot.shape[0] - said.shape[1]))
        return F.layer_norm(said + self.slot, (self.slot.shape[1],))
