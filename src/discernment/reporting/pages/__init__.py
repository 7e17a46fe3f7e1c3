"""The pages: each is one HTML file without scripts, made from what a run left."""
