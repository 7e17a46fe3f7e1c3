"""Stage 2: supervised safety fine-tuning."""
