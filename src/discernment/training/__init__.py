"""Training stages: contrastive refinement (stage 1), supervised safety fine-tuning (stage 2), and what they share."""
