"""What a policy says, from whole sequences that are read one at a time: a reference for replies and rejection probabilities."""

from __future__ import annotations

import torch


def reply_by_hand(policy, prompt, logits_of, cap):
    """The reply's text, from `logits_of(policy, prompt, reply so far)`."""
    reply, ends = [], {policy.chat.end_of_turn, policy.chat.tokenizer.eos_token_id, 2}
    while len(reply) < cap and (not reply or reply[-1] not in ends):
        reply.append(int(logits_of(policy, prompt, reply).argmax()))
    return policy.chat.tokenizer.decode(reply, skip_special_tokens=True).strip()


def mass_by_hand(policy, prompt, logits_of, openings):
    """The probability that the reply begins with one of the openings."""
    total = 0.0
    for opening in openings:
        reply, probability = list(policy.chat.lead), 1.0
        for token in policy.chat.encode_opening(opening):
            logits = logits_of(policy, prompt, reply).double()
            probability *= float(torch.softmax(logits, -1)[token])
            reply.append(token)
        total += probability
    return total
