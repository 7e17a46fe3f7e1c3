"""Stage 1: contrastive refinement on one intermediate layer."""
